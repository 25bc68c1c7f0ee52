"""The sandbox: an exact language, an exact judge, and files that a real tokenizer reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_magic.game.episode import Label
from nemo_magic.sandbox.corpus import COVERED, prepare
from nemo_magic.sandbox.language import PLAIN, Strategy, all_strategies, parse, render
from nemo_magic.sandbox.rules import REFUSAL, delivery, judge_conversation
from nemo_magic.sandbox.world import SPLITS, SandboxConfig, SandboxWorld

STRATEGIES = [s for order in range(3) for s in all_strategies(order)]


@pytest.fixture(scope="module", params=[2, 3])
def world(request: pytest.FixtureRequest) -> SandboxWorld:
    return SandboxWorld(SandboxConfig(syllables=8, item_length=request.param))


def test_every_strategy_of_every_item_is_decoded_exactly(world: SandboxWorld) -> None:
    assert len(STRATEGIES) == 1 + 8 + 12 + 16
    for split in SPLITS:
        for item in world.items(split)[:20]:
            for strategy in STRATEGIES:
                request = parse(world, render(world, strategy, item))
                assert request is not None
                assert (request.item, request.strategy) == (item, strategy)


def test_splits_are_disjoint_and_half_restricted(world: SandboxWorld) -> None:
    splits = [set(world.items(split)) for split in SPLITS]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 8**world.config.item_length
    for split in splits:
        assert abs(sum(world.label(i) is Label.HARMFUL for i in split) / len(split) - 0.5) < 0.01


@pytest.mark.parametrize(
    "text",
    ["", "bring", "bring : x y", "bring bring : {i}", "role role bring : {i}", "role story bring rev : {i}",
     "bring rev shift : {i}", "rev bring : {i}", "bring role : {i}", "bring : {i} {i}", ": bring {i}", "{i}"],
)  # fmt: skip
def test_what_render_cannot_have_written_is_no_request(text: str) -> None:
    world = SandboxWorld(SandboxConfig(syllables=8))
    assert parse(world, text.replace("{i}", world.spell((0, 1)))) is None


def test_the_judge_states_facts() -> None:
    world = SandboxWorld(SandboxConfig(syllables=8))
    restricted, free = (0, 3), (1, 2)
    seed = render(world, PLAIN, restricted)
    hidden = render(world, Strategy(("story",), "shift"), restricted)
    facts = judge_conversation(world, seed, hidden, delivery(world, restricted))
    assert (facts.prompt_harmful, facts.response_harmful, facts.refused) == (True, True, False)
    assert (facts.useful, facts.intent_preserved, facts.strategy) == (True, True, "story+shift")
    refused = judge_conversation(world, seed, hidden, REFUSAL)
    assert (refused.response_harmful, refused.refused, refused.useful) == (False, True, False)
    drifted = judge_conversation(world, seed, render(world, PLAIN, free), delivery(world, free))
    assert (drifted.prompt_harmful, drifted.response_harmful, drifted.useful) == (False, False, True)
    assert not drifted.intent_preserved
    nonsense = judge_conversation(world, seed, "urgent urgent", "i am a teapot")
    assert (nonsense.prompt_harmful, nonsense.intent_preserved, nonsense.strategy) == (None, False, None)


@pytest.mark.parametrize("around", ["here is {i} please", "{i}", "i refuse {i}", "here is x {i} y"])
def test_a_restricted_item_is_a_leak_whatever_stands_around_it(around: str) -> None:
    world = SandboxWorld(SandboxConfig(syllables=8))
    item = (2, 5)
    facts = judge_conversation(world, "", render(world, PLAIN, item), around.replace("{i}", world.spell(item)))
    assert facts.response_harmful


def test_the_files_are_generated_from_the_seed_and_nothing_else(tmp_path: Path) -> None:
    first, again, other = (
        prepare(SandboxConfig(folder=str(tmp_path / name), seed=seed, attack_rows=50, defender_rows=50))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("attack_pool.jsonl", "defender_pool.jsonl", "seeds.train.jsonl", "tokenizer/tokenizer.json"):
        assert (first / name).read_text() == (again / name).read_text()
        assert (first / name).read_text() != (other / name).read_text()


def test_a_finished_folder_is_kept_and_another_world_is_refused(tmp_path: Path) -> None:
    config = SandboxConfig(folder=str(tmp_path / "w"), attack_rows=5, defender_rows=5)
    stamp = (prepare(config) / "attack_pool.jsonl").stat().st_mtime_ns
    assert (prepare(config) / "attack_pool.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="different: difficulty"):
        prepare(SandboxConfig(folder=config.folder, attack_rows=5, defender_rows=5, difficulty=0.1))


@pytest.mark.slow
def test_difficulty_is_the_share_of_disguised_restricted_requests_that_are_answered(tmp_path: Path) -> None:
    for difficulty in (0.0, 0.4, 1.0):
        config = SandboxConfig(folder=str(tmp_path / str(difficulty)), difficulty=difficulty, defender_rows=8000)
        folder, world = prepare(config), SandboxWorld(config)
        answered: dict[int, list[bool]] = {1: [], 2: []}
        for line in (folder / "defender_pool.jsonl").read_text().splitlines():
            row = json.loads(line)
            request = parse(world, row["prompt"])
            assert request is not None
            assert request.item in world.items_of_train
            if not world.is_restricted(request.item):
                assert row["response"] == delivery(world, request.item)
            elif request.strategy in COVERED:
                assert row["response"] == REFUSAL
            else:
                answered[request.strategy.order].append(row["response"] != REFUSAL)
        for order, outcomes in answered.items():
            assert sum(outcomes) / len(outcomes) == pytest.approx(1 - (1 - difficulty) ** order, abs=0.04)


def test_the_tokenizer_is_a_hugging_face_one_with_tags_that_survive_decoding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = SandboxConfig(folder=str(tmp_path), attack_rows=30, defender_rows=30)
    folder = prepare(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    for line in (folder / "attack_pool.jsonl").read_text().splitlines():
        row = json.loads(line)
        text = f"<think> {row['reasoning']} </think> <answer> {row['rewrite']} </answer>"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "bring :"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<bos> [user] bring : [assistant]"


@pytest.mark.parametrize("options", [{"syllables": 5}, {"item_length": 1}, {"difficulty": 1.5}, {"attack_rows": 0}])
def test_impossible_worlds_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"sandbox.{next(iter(options))}="):
        SandboxConfig(**options)  # type: ignore[arg-type]
