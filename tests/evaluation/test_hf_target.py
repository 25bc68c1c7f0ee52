"""A Hugging Face model that plays a role: it says what transformers says, and what cannot be played is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from nemo_magic.actors.config import ActorConfig, LengthConfig, SamplingConfig
from nemo_magic.config import ConfigError, MagicConfig, compose
from nemo_magic.config.evaluation import describe_evaluation, needs_world
from nemo_magic.evaluation.setup import evaluation_options
from nemo_magic.game.episode import Message
from nemo_magic.game.prompts import Chat
from nemo_magic.rollout.huggingface import HuggingFacePolicy
from tests.evaluation.served_world import POSITIONS, ServedWorld

SAID = LengthConfig(max_length=12, min_length=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServedWorld:
    return ServedWorld(tmp_path_factory.mktemp("hf_target"))


def policy(world: ServedWorld, sampling: SamplingConfig | None = None, batch: int = 3) -> HuggingFacePolicy:
    options = ActorConfig(length_params=SAID, sampling_params=sampling or SamplingConfig())
    return HuggingFacePolicy(world.hf, options, batch)


def chats() -> list[Chat]:
    """Of unequal lengths."""
    words = ["bring", ":", "so", "li", "mu", "ra", "is", "here", "tell"]
    return [(Message("user", " ".join(words[n % 3 : n % 3 + 1 + n % 6])),) for n in range(11)]


def test_greedy_answers_of_padded_batches_are_those_that_transformers_gives_one_by_one(world: ServedWorld) -> None:
    model = AutoModelForCausalLM.from_pretrained(world.hf)
    said = policy(world).generate(chats(), range(11), greedy=True)
    assert len({completion.text for completion in said if completion}) > 3
    assert {completion.finished for completion in said if completion} == {True, False}
    for completion in said:
        assert completion is not None
        ids = torch.tensor([completion.prompt_ids])
        config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=1)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert tuple(output[0, ids.size(1) :].tolist()) == completion.response_ids
        with torch.no_grad():
            scores = torch.log_softmax(model(output).logits[0], dim=-1)[ids.size(1) - 1 : -1]
        own = scores.gather(1, output[0, ids.size(1) :, None]).flatten().tolist()
        assert completion.logprobs == pytest.approx(own, abs=1e-4)


def test_a_sample_depends_on_chat_seed_and_weights_only(world: ServedWorld) -> None:
    together = policy(world).generate(chats(), range(11), greedy=False)
    alone = [
        speaker_.generate([chat], [seed], False)[0] for speaker_ in [policy(world)] for seed, chat in enumerate(chats())
    ]
    assert [c.response_ids for c in together if c] == [c.response_ids for c in alone if c]
    assert [c.response_ids for c in policy(world).generate(chats(), range(50, 61), False) if c] != [
        c.response_ids for c in together if c
    ]


def test_an_answer_ends_with_its_stop_string_left_out(world: ServedWorld) -> None:
    [whole] = policy(world).generate(chats()[:1], [0], True)
    assert whole is not None
    words = whole.text.split()
    ends = SamplingConfig(end_strings=[" ".join(words[1:3])])
    [stopped, *_] = policy(world, ends).generate(chats(), range(11), True)
    assert stopped is not None
    assert (stopped.text, stopped.finished) == (words[0], True)
    size = len(stopped.response_ids)
    assert stopped.response_ids == whole.response_ids[:size]
    assert size < len(whole.response_ids)


def test_a_chat_that_is_too_long_has_no_answer_and_what_is_fitted_has_one(world: ServedWorld) -> None:
    def chat_of(text: str) -> Chat:
        return (Message("user", text),)

    long = "so " * POSITIONS
    mute = HuggingFacePolicy(world.hf, ActorConfig(length_params=SAID), 3, generates=False)
    fitted = mute.truncate_to_context(long, chat_of)
    assert fitted == policy(world).truncate_to_context(long, chat_of)
    assert 10 < len(fitted.split()) < POSITIONS
    too_long, readable = policy(world).generate([chat_of(long), chat_of(fitted)], [0, 0], True)
    assert too_long is None
    assert readable is not None
    assert len(readable.prompt_ids) + SAID.max_length == POSITIONS


# --- configuration


def configured(world: ServedWorld, *overrides: str, command: str = "evaluate") -> MagicConfig:
    file = f"eval.tasks.test.file={world.sandbox / 'seeds.test.jsonl'}"
    return compose("eval_sandbox", [file, "eval.tasks.validation.file=null", *overrides], command=command)


def test_a_folder_of_transformers_is_told_by_what_is_in_it_and_needs_no_world(world: ServedWorld) -> None:
    by_path = configured(world, f"actors.defender.restore_from_path={world.hf}")
    by_key = configured(world, "actors.defender.restore_from_path=null", f"actors.defender.hf.path={world.hf}")
    for cfg in (by_path, by_key):
        assert not needs_world(cfg)
        assert f"{world.hf}, by transformers" in describe_evaluation(cfg)
    assert needs_world(configured(world, f"actors.defender.restore_from_path={world.nemo}"))
    assert needs_world(configured(world, f"actors.defender.restore_from_path={world.home / 'converted'}"))


def test_what_will_not_be_judged_is_not_generated_and_what_can_be_read_stays(world: ServedWorld) -> None:
    cfg = configured(world, f"actors.defender.restore_from_path={world.hf}", "eval.max_judged_tokens=3")
    cfg.actors.defender.length_params = replace(cfg.actors.defender.length_params, max_prompt_length=30)
    limits = evaluation_options(cfg, "defender").length_params  # type: ignore[arg-type]
    assert (limits.max_length, limits.max_prompt_length) == (3, 30)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["actors.defender.hf.path={hf}"], "the role is played once, set actors.defender.restore_from_path=null"),
        (["actors.defender.restore_from_path=null", "actors.defender.hf.path={sandbox}"], "is no Hugging Face model"),
        (["actors.defender.hf.dtype=float64"], "hf.dtype='float64' must be one of: auto, float32"),
        (["actors.defender.hf.pth=x"], "did you mean actors.defender.hf.path?"),
    ],
)
def test_what_cannot_be_played_is_refused_by_key(world: ServedWorld, given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        configured(world, *(text.format(hf=world.hf, sandbox=world.sandbox) for text in given))


@pytest.mark.parametrize("command", ["train", "serve"])
def test_what_learns_or_is_served_is_megatrons_and_how_to_convert_is_said(world: ServedWorld, command: str) -> None:
    with pytest.raises(ConfigError, match="nemo-magic convert hf-to-nemo"):
        configured(world, f"actors.defender.restore_from_path={world.hf}", command=command)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["actors.defender.remote.urls=[http://there/v1]"], "actors.defender.remote.urls has to be"),
        (["serve.role=judge"], "serve.role='judge' must be one of: attacker, defender"),
        (["serve.port=70000"], "serve.port=70000 must be between 0"),
        (["model.tensor_model_parallel_size=3"], "model.tensor_model_parallel_size=3"),
    ],
)
def test_what_cannot_be_served_is_refused_by_key(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose("magic_sandbox", given, command="serve")


def test_what_is_served_needs_neither_judge_nor_data_nor_the_other_role(tmp_path: Path) -> None:
    cfg = compose("eval_paper", [f"actors.defender.restore_from_path={tmp_path}"], command="serve")
    assert cfg.serve.name == "defender"
    with pytest.raises(ConfigError, match="actors.attacker.restore_from_path has to be given"):
        compose("eval_paper", ["serve.role=attacker"], command="serve")
