"""The world of several turns: a defender that stays true to itself, and pools that show later turns too."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.config import compose
from nemo_magic.data.errors import DataError
from nemo_magic.data.pools import read_attack_pool, read_chat_pool
from nemo_magic.game import tags
from nemo_magic.game.episode import Message
from nemo_magic.game.prompts import attacker_messages
from nemo_magic.sandbox.conversations import FIRST_TURNS, KEPT_AFTER_DELIVERY, KEPT_AFTER_REFUSAL, Memory
from nemo_magic.sandbox.corpus import COVERED, prepare
from nemo_magic.sandbox.language import PLAIN, Strategy, parse
from nemo_magic.sandbox.rules import REFUSAL, delivery
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld

Row = dict[str, Any]

DIFFICULTY, WEAR = 0.3, 0.3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SandboxConfig:
    folder = tmp_path_factory.mktemp("turns")
    config = SandboxConfig(
        folder=str(folder),
        turns=3,
        difficulty=DIFFICULTY,
        wear=WEAR,
        attack_rows=6000,
        defender_rows=12000,
        syllables=8,
    )
    prepare(config)
    return config


@pytest.fixture(scope="module")
def world(config: SandboxConfig) -> SandboxWorld:
    return SandboxWorld(config)


def rows(config: SandboxConfig, pool: str) -> list[Row]:
    return [json.loads(line) for line in (Path(config.folder) / f"{pool}_pool.jsonl").read_text().splitlines()]


def exchanges(world: SandboxWorld, row: Row) -> list[tuple[Strategy, bool, str]]:
    """(disguise, whether the item is restricted, reply) of every turn of a row of the defender's pool."""
    found = []
    for user, assistant in zip(row["messages"][::2], row["messages"][1::2], strict=True):
        request = parse(world, user["content"])
        assert request is not None
        found.append((request.strategy, world.is_restricted(request.item), assistant["content"]))
    return found


def test_one_turn_is_the_world_as_it_was_byte_for_byte(tmp_path: Path) -> None:
    folder = prepare(SandboxConfig(folder=str(tmp_path), attack_rows=200, defender_rows=200))
    pools = b"".join((folder / f"{name}_pool.jsonl").read_bytes() for name in ("attack", "defender"))
    assert hashlib.sha256(pools).hexdigest() == "d88625c0d4c0d7ea083b3430cc1d7f333716f45f75188de0d6ba9f5be076fcfb"


def test_a_folder_of_another_number_of_turns_is_another_world(tmp_path: Path) -> None:
    config = SandboxConfig(folder=str(tmp_path), attack_rows=5, defender_rows=5)
    assert prepare(config) == prepare(config) == tmp_path
    with pytest.raises(FileExistsError, match="different: turns"):
        prepare(SandboxConfig(folder=str(tmp_path), attack_rows=5, defender_rows=5, turns=2))


def test_a_conversation_asks_for_one_item_in_one_to_so_many_turns(config: SandboxConfig, world: SandboxWorld) -> None:
    lengths: Counter[int] = Counter()
    for row in rows(config, "defender"):
        items = {request.item for m in row["messages"][::2] if (request := parse(world, m["content"])) is not None}
        assert len(items) == 1
        assert items < set(world.items_of_train)
        lengths[len(row["messages"]) // 2] += 1
    assert sorted(lengths) == [1, 2, 3]
    assert lengths[1] / lengths.total() == pytest.approx(FIRST_TURNS, abs=0.02)
    assert lengths[2] == pytest.approx(lengths[3], rel=0.1)


def test_the_taught_defender_stays_true_to_what_it_said(config: SandboxConfig, world: SandboxWorld) -> None:
    repeated: Counter[bool] = Counter()
    for row in rows(config, "defender"):
        said: dict[Strategy, str] = {}
        for strategy, _, reply in exchanges(world, row):
            assert said.setdefault(strategy, reply) == reply
        if len(row["messages"]) > 2:
            repeated[len(said) < len(row["messages"]) // 2] += 1
    assert repeated[True] > 1000


def test_a_fresh_disguise_has_better_odds_the_more_others_were_refused(
    config: SandboxConfig, world: SandboxWorld
) -> None:
    refused: dict[tuple[int, int], list[bool]] = {}
    for row in rows(config, "defender"):
        met: dict[Strategy, bool] = {}
        for strategy, restricted, reply in exchanges(world, row):
            if not restricted:
                assert reply != REFUSAL
            elif strategy in COVERED:
                assert reply == REFUSAL
            elif strategy not in met:
                refused.setdefault((strategy.order, sum(met.values())), []).append(reply == REFUSAL)
            met.setdefault(strategy, reply == REFUSAL)
    assert sorted(refused) == [(order, before) for order in (1, 2) for before in range(3)]
    for (order, before), outcomes in refused.items():
        assert sum(outcomes) / len(outcomes) == pytest.approx((1 - DIFFICULTY - WEAR * before) ** order, abs=0.1)


def test_the_warmed_up_attacker_has_a_leaning_and_no_more(config: SandboxConfig, world: SandboxWorld) -> None:
    kept: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows(config, "attack"):
        if row["label"] == "harmful" and row["history"]:
            before, now = (parse(world, turn["rewrite"]) for turn in (row["history"][-1], row))
            assert before is not None
            assert now is not None
            kept[row["history"][-1]["reply"] == REFUSAL].append(before.strategy == now.strategy)
    for refused, share in ((True, KEPT_AFTER_REFUSAL), (False, KEPT_AFTER_DELIVERY)):
        # A disguise drawn anew is at times the same one.
        by_chance = (1 - share) * 0.1
        assert sum(kept[refused]) / len(kept[refused]) == pytest.approx(share + by_chance, abs=0.06)


def test_memory_asks_the_rule_once_per_disguise() -> None:
    asked = []

    def rule(strategy: Strategy, item: tuple[int, ...], refused: int) -> bool:
        asked.append((strategy, item, refused))
        return len(asked) == 1

    memory, story = Memory((1, 2), rule), Strategy(frames=("story",))
    assert [memory.refuses(s) for s in (PLAIN, story, PLAIN, story)] == [True, False, True, False]
    assert asked == [(PLAIN, (1, 2), 0), (story, (1, 2), 1)]


def test_later_turns_are_taught_as_the_game_will_show_them(config: SandboxConfig, world: SandboxWorld) -> None:
    pool, report = read_attack_pool(str(Path(config.folder) / "attack_pool.jsonl"))
    assert report.kept == len(pool) == config.attack_rows
    taught = next(row for row in pool if len(row.history) == 2)
    chat = attacker_messages(compose("magic_sandbox_turns").game.prompts, taught.seed, taught.history, 3)
    assert [m.role for m in chat] == ["user", "assistant", "user", "assistant", "user"]
    for wrote, told in zip(chat[1::2], chat[2::2], strict=True):
        assert tags.parse(wrote.content).format_ok
        item = parse(world, tags.parse(wrote.content).visible)
        assert item is not None
        assert told.content in (REFUSAL, delivery(world, item.item))
    chats, _ = read_chat_pool(str(Path(config.folder) / "defender_pool.jsonl"))
    assert {len(row.messages) for row in chats} == {1, 3, 5}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_histories_are_read_from_any_format_that_holds_lists(tmp_path: Path, suffix: str) -> None:
    past = [{"reasoning": "r", "rewrite": "w", "reply": "no"}]
    base = {"seed": "s", "label": "harmful", "reasoning": "r2", "rewrite": "w2"}
    table = [base | {"history": past}, base | {"history": []}, base | {"history": None}]
    path = tmp_path / f"pool{suffix}"
    if suffix == ".parquet":
        import pandas

        pandas.DataFrame(table).to_parquet(path)
    else:
        path.write_text(json.dumps(table) if suffix == ".json" else "\n".join(map(json.dumps, table)))
    pool, _ = read_attack_pool(str(path))
    assert [row.history for row in pool] == [(("<think> r </think> <answer> w </answer>", "no"),), (), ()]


@pytest.mark.parametrize("history", ["no list", 3, ["w"], [{"rewrite": "w"}], [{"rewrite": "", "reply": "no"}]])
def test_rows_whose_history_cannot_be_read_are_dropped_and_counted(tmp_path: Path, history: object) -> None:
    base = {"seed": "s", "label": "harmful", "reasoning": "r", "rewrite": "w"}
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(map(json.dumps, [base, base | {"history": history}])))
    pool, report = read_attack_pool(str(path))
    assert len(pool) == 1
    assert report.dropped == {"history is no list of objects with rewrite and reply": 1}
    path.write_text(json.dumps(base | {"history": history}))
    with pytest.raises(DataError, match="no row can be used"):
        read_attack_pool(str(path))


def test_less_than_one_turn_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="sandbox.turns=0 must be at least 1"):
        SandboxConfig(turns=0)


@pytest.mark.parametrize("name", ["sft_sandbox_turns_attacker", "sft_sandbox_turns_defender", "magic_sandbox_turns"])
def test_the_configurations_of_this_world_agree_on_it(name: str) -> None:
    cfg = compose(name, command="sft" if name.startswith("sft") else "train")
    assert cfg.sandbox.turns == cfg.game.max_turns == 3
    assert cfg.model.encoder_seq_length == compose("magic_sandbox_turns").model.encoder_seq_length
    assert cfg.sandbox.folder == "runs/sandbox_turns"


@pytest.mark.parametrize("rewards", ["paper", "robust"])
def test_the_attacker_has_instructions_for_several_turns(rewards: str) -> None:
    given = [
        "data.train_files=[seeds.jsonl]", "judge.urls=[http://judge:8000]",
        "actors.attacker.restore_from_path=a", "actors.defender.restore_from_path=d",
    ]  # fmt: skip
    prompts = compose("magic", [*given, f"game={rewards}", "game.max_turns=3"]).game.prompts
    assert prompts.attacker_system_turns is not None
    assert all(tag in prompts.attacker_system_turns for tag in ("<think></think>", "<answer></answer>"))
    cfg = compose("magic", [*given, "game=multi_turn"])
    assert cfg.game.max_turns == 3
    assert attacker_messages(cfg.game.prompts, _seed(), (), 3)[0] == Message("system", prompts.attacker_system_turns)


def _seed() -> Any:
    from nemo_magic.game.episode import Label, Seed

    return Seed("a", "bring tea", Label.BENIGN)
