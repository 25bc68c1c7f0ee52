"""vLLM itself behind the judge, in a role, and as what is evaluated, with weights that ``convert nemo-to-hf`` wrote.

The model is a tiny random one, or the folder that NEMO_MAGIC_ENGINES_MODEL names (`make test-engines MODEL=FOLDER`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemo_magic.actors.config import ActorConfig, LengthConfig
from nemo_magic.game.episode import Message
from nemo_magic.report.records import read_records
from nemo_magic.rollout.huggingface import HuggingFacePolicy
from tests.convert.tiny_peft import RANK, make_peft
from tests.engines.vllm_server import ADAPTED, NAME, VllmServer
from tests.evaluation.served_world import ServedWorld, Server, evaluated, make_tiny
from tests.judge.tiny_checkpoint import ALPHABET

pytestmark = [pytest.mark.process, pytest.mark.engines]

POSITIONS = 2048
ALONE = ["trainer.devices=1", "model.tensor_model_parallel_size=1"]
"""The ranks' layouts are compared elsewhere, and nine heads, as SmolLM2 has, cannot be halved."""
QUESTIONS = (
    "Where does the sun rise?",
    "Name three colours.",
    "Which month comes after June?",
    "How many days are in a week?",
    "Write a sentence about a cat.",
)
LONGEST = 48


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServedWorld:
    home = tmp_path_factory.mktemp("engines")
    given = os.environ.get("NEMO_MAGIC_ENGINES_MODEL")
    # vLLM has no kernel for heads of 16.
    hf = Path(given).resolve() if given else make_tiny(home, ALPHABET, 256, heads=2, context=POSITIONS)
    return ServedWorld(home, hf, POSITIONS)


@pytest.fixture(scope="module")
def exported(world: ServedWorld) -> Path:
    """The weights as the run's user gets them back."""
    world.run("convert", "nemo-to-hf", str(world.home / "converted"), str(world.home / "exported"))
    return world.home / "exported"


@pytest.fixture(scope="module")
def adapters(world: ServedWorld, exported: Path) -> Path:
    """Adapters of PEFT's that a role starts from, and as the run's user gets them back."""
    make_peft(world.home / "peft", world.hf, lora_alpha=1)
    converted, back = str(world.home / "adapters"), world.home / "adapters_back"
    world.run("convert", "hf-to-nemo", str(world.home / "peft"), converted, "--base", str(world.home / "converted"))
    world.run("convert", "nemo-to-hf", converted, str(back), "--adapter", "--base-name", str(exported))
    return back


@pytest.fixture(scope="module")
def vllm(world: ServedWorld, exported: Path, adapters: Path) -> Iterator[VllmServer]:
    server = VllmServer(exported, world.home, POSITIONS, adapters)
    yield server
    server.let_go()


def test_a_greedy_answer_is_the_same_from_megatron_transformers_and_vllm(
    world: ServedWorld, exported: Path, vllm: VllmServer
) -> None:
    options = ActorConfig(length_params=LengthConfig(LONGEST, 0))
    replies = HuggingFacePolicy(exported, options, 8).generate(
        [(Message("user", question),) for question in QUESTIONS], list(range(len(QUESTIONS))), True
    )
    # A policy's text has no space around it.
    transformers = [reply.text for reply in replies if reply is not None]
    assert len(set(transformers)) == len(QUESTIONS)
    served = Server(world.words("serve", *ALONE, "serve.port=0", "serve.model=defender"))
    try:
        with httpx.Client(base_url=served.url, trust_env=False, timeout=180) as client:
            asks: dict[str, Any] = {"model": "defender", "temperature": 0, "max_tokens": LONGEST}
            chats = [asks | {"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
            bodies = [client.post("/chat/completions", json=chat).json() for chat in chats]
    finally:
        served.signal()
        assert served.ended() == 0
    megatron = [body["choices"][0]["message"]["content"].strip() for body in bodies]
    there = [vllm.chat(question, max_tokens=LONGEST).strip() for question in QUESTIONS]
    assert megatron == transformers
    assert there == transformers


def test_adapters_that_vllm_loads_give_the_log_probabilities_that_megatron_gives(
    world: ServedWorld, vllm: VllmServer
) -> None:
    rank = f"model.peft.lora_tuning={{adapter_dim: {RANK}, alpha: 1}}"
    on_base = [rank, "model.peft.peft_scheme=lora", f"model.peft.restore_from_path={world.home / 'adapters'}"]
    on_base += [f"actors.defender.restore_from_path={world.home / 'converted'}"]
    asks: dict[str, Any] = {"temperature": 0, "max_tokens": LONGEST, "logprobs": True}
    chats = [asks | {"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    served = Server(world.words("serve", *ALONE, *on_base, "serve.port=0", "serve.model=defender"))
    try:
        with httpx.Client(base_url=served.url, trust_env=False, timeout=180) as client:
            bodies = [client.post("/chat/completions", json={"model": "defender"} | chat).json() for chat in chats]
    finally:
        served.signal()
        assert served.ended() == 0
    megatron = [body["choices"][0] for body in bodies]
    there = [vllm.ask("chat/completions", model=ADAPTED, **chat) for chat in chats]
    bare = [vllm.ask("chat/completions", **chat) for chat in chats]
    assert [log_probabilities(choice) for choice in there] == [
        pytest.approx(log_probabilities(choice), abs=1e-4) for choice in megatron
    ]
    assert [log_probabilities(choice) for choice in bare] != [log_probabilities(choice) for choice in there]


def log_probabilities(choice: dict[str, Any]) -> list[float]:
    """Of a reply's tokens."""
    return [token["logprob"] for token in choice["logprobs"]["content"]]


def test_an_evaluation_of_vllm_is_that_of_the_actor(world: ServedWorld, vllm: VllmServer) -> None:
    actor = evaluated(world, "megatron", *ALONE)
    assert len(actor.said) == 40 + 8
    assert len({str(turns) for turns in actor.said.values()}) > 20
    remote = [f"actors.defender.remote.urls=[{vllm.url}]", f"actors.defender.remote.model={NAME}"]
    there = evaluated(world, "vllm", *ALONE, "actors.defender.restore_from_path=null", *remote)
    # The table's notes may differ: an actor's empty answer is an answer that failed for another reason than a server's.
    assert (there.said, there.figures) == (actor.said, actor.figures)


def test_vllm_plays_a_frozen_role(world: ServedWorld, vllm: VllmServer) -> None:
    folder = world.home / "game"
    answered = vllm.answered()
    # The protocol has no least length; vLLM has one, under a name of its own.
    least = "actors.attacker.remote.extra_body={min_tokens: 2}"
    world.run(
        "train", "-cn", "magic_sandbox", f"exp_manager.explicit_log_dir={folder}", f"sandbox.folder={world.sandbox}",
        "trainer.devices=1", "actors.attacker.restore_from_path=null", "actors.defender.restore_from_path=null",
        f"actors.attacker.remote.urls=[{vllm.url}]", f"actors.attacker.remote.model={NAME}", least,
        "game.schedule.train_roles=[defender]", "game.max_steps=2", "game.batch_size=8", "game.num_val_samples=8",
        "game.crossplay.enabled=false", "game.strategy_sweep=null",
    )  # fmt: skip
    records = [record for record in read_records(folder / "metrics.jsonl") if record.step > 0]
    assert [record.learner for record in records] == ["defender"] * 2
    for record in records:
        assert record.metrics["train_rollouts/unplayed_share"] == record.metrics["train_rollouts/unanswered"] == 0
        assert record.metrics["train_rollouts/unknown_share"] == 0
    assert vllm.answered() - answered >= 8


def test_vllm_answers_the_rubrics_questions_in_its_words(world: ServedWorld, vllm: VllmServer) -> None:
    """Even a model that says syllables at random: what it says is held to each question's own schema."""
    rows = [
        {
            "seed": question, "seed_label": "benign", "prompt": question, "response": "It is as you say.",
            "prompt_safety": "safe", "response_safety": "safe", "refusal": "no", "helpful": "yes",
            "intent_preserved": "yes",
        }
        for question in QUESTIONS
    ]  # fmt: skip
    labelled = world.home / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = Server(
        [
            "judge", "-cn", "judge_rubric", f"judge.guard_config.model.urls=[{vllm.url}]",
            f"judge.guard_config.model.model={NAME}", "judge.guard_config.cache=null", "judge.token_env=null",
            "judge.server.host=127.0.0.1", "judge.server.port=0",
        ],
        r"judge rubric on (http://\S+)",
    )  # fmt: skip
    try:
        table = world.run("judge-check", str(labelled), "--judge", judge.url, "--batch", "5")
    finally:
        judge.signal()
        judge.ended()
    for field in ("prompt_safety", "response_safety", "refusal", "helpful", "intent_preserved"):
        assert re.search(rf"\| {field} \| {len(rows)} \| 0\.0%", table), table


def test_vllm_listens_on_loopback_alone_and_ends_with_what_started_it(vllm: VllmServer) -> None:
    # The last test of the module: it ends the server that all share.
    listening = vllm.addresses()
    assert listening
    assert listening <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert len(vllm.processes()) > 3, "the guardian, the server, its engine, its worker"
    vllm.let_go()
    assert not vllm.processes()
