"""What a seeded game samples and learns, and under which keys answers and games are kept, is what it was.

A change that is meant to change none of it (another name, another module, another way to start) leaves
frozen_digests.json as it is. One that is meant to writes it anew: ``NEMO_MAGIC_FREEZE=1 make test
PYTEST_ARGS=tests/test_frozen_digests.py``. Everything that can be is read from what the program leaves in a folder, so
that a renamed function changes no test.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.rollout.response_cache import cache_key
from tests import zygote
from tests.evaluation.evaluating import Evaluated
from tests.training.program import Game, fresh, run

FROZEN = Path(__file__).with_name("frozen_digests.json")

NEW_NAMES = {"train_optim/surprise": "train_optim/neg_logprob_minus_entropy"}
"""Frozen name of a figure → what it is called now, where it was renamed since."""

NOT_OF_THE_GAME = ("timers/", "memory/", "throughput/", "judge/", "judge_audit/")
"""Figures of speed, of memory, and of what a request went through."""


def frozen(name: str, found: Any) -> Any:
    """What is frozen under ``name``; ``found`` is frozen first where that was asked for."""
    if os.environ.get("NEMO_MAGIC_FREEZE"):
        kept = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
        FROZEN.write_text(json.dumps(kept | {name: found}, indent=1, sort_keys=True) + "\n")
    return json.loads(FROZEN.read_text())[name]


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def texts(value: Any) -> Iterator[str]:
    """All that was asked and said, in order, whatever the columns are called: it is several words long."""
    if isinstance(value, str):
        if " " in value:
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)


def ids(value: Any) -> Iterator[list[int]]:
    """All lists of whole numbers, in order: the tokens of prompts and of responses."""
    if isinstance(value, dict):
        for part in value.values():
            yield from ids(part)
    elif isinstance(value, list):
        if value and all(isinstance(part, int) for part in value):
            yield value
        else:
            for part in value:
                yield from ids(part)


def written_ahead(run_folder: Path) -> list[Any]:
    """The tokens of all attacks that a run wrote ahead and saved: as many as that, and their digest."""
    found = []
    for path in sorted(run_folder.glob("checkpoints/step_*/rewrites.json")):
        # Ranks write in turn, and there are more of them at another layout.
        found += sorted(list(ids(row)) for row in json.loads(path.read_text()))
    return [len(found), digest_of(found)]


def conversations(run_folder: Path) -> dict[str, str]:
    return {
        path.stem: digest_of([list(texts(json.loads(line))) for line in path.read_text().splitlines()])
        for path in sorted(run_folder.glob("samples/step_*.jsonl"))
    }


def figures(run_folder: Path) -> dict[str, dict[str, float]]:
    """Step → its figures."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {
        str(row["step"]): {k: v for k, v in row.items() if "/" in k and not k.startswith(NOT_OF_THE_GAME)}
        for row in rows
    }


def same_figures(found: dict[str, dict[str, float]], kept: dict[str, dict[str, float]]) -> None:
    assert found.keys() == kept.keys()
    for step, row in kept.items():
        named = {NEW_NAMES.get(name, name): value for name, value in row.items()}
        # Equal bit for bit where it was frozen; another processor may fuse a multiplication with an addition.
        assert found[step] == pytest.approx(named, rel=1e-5, abs=1e-6), step


@pytest.mark.process
@pytest.mark.parametrize("layout", ["tp1", "tp2"])
def test_a_seeded_rollout_samples_the_tokens_that_are_frozen(
    layout: str, request: pytest.FixtureRequest, unbroken: Path
) -> None:
    folder: Path = unbroken if layout == "tp1" else request.getfixturevalue("unbroken_tp2")
    found = {"attacks": written_ahead(folder), "conversations": conversations(folder)}
    assert found["attacks"][0] > 0
    assert found == frozen(f"rollout {layout}", found)


@pytest.mark.process
@pytest.mark.parametrize("layout", ["tp1", "tp2"])
def test_a_seeded_game_has_the_figures_that_are_frozen(
    layout: str, request: pytest.FixtureRequest, unbroken: Path
) -> None:
    folder: Path = unbroken if layout == "tp1" else request.getfixturevalue("unbroken_tp2")
    same_figures(figures(folder), frozen(f"figures {layout}", figures(folder)))


@pytest.mark.process
def test_a_checkpoint_that_is_gone_on_from_learns_what_is_frozen(game: Game, unbroken: Path) -> None:
    folder = game.folder("frozen")
    shutil.copytree(unbroken, folder, symlinks=True, ignore=shutil.ignore_patterns("cross-play"))
    for path in folder.glob("checkpoints/step_*"):
        if int(path.name[5:]) > 3:
            shutil.rmtree(path)
    # By an interpreter of its own: what the forks of these tests find is what a user finds.
    assert "step_000003: 3 of 6 steps are done" in fresh(*game.quick("frozen")).stdout
    found = figures(folder)
    learned = [value for step in "456" for name, value in found[step].items() if name.startswith("train_optim/")]
    assert len(learned) > 3 * 5
    same_figures(found, frozen("figures tp1", found))


@pytest.mark.process
def test_what_was_found_in_a_league_is_frozen(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("cross-play", "checkpoints"))
    run("cross-play", str(folder), "game.crossplay.num_seeds=20")
    league = json.loads((folder / "cross-play" / "league.json").read_text())
    found = {name: league[name]["matrix"] for name in ("asr", "payoff")}
    for name, matrix in frozen("league", found).items():
        assert found[name] == [pytest.approx(row, rel=1e-5, abs=1e-6) for row in matrix]


@pytest.mark.process
def test_answers_and_verdicts_of_an_evaluation_are_kept_under_the_keys_that_are_frozen(tmp_path: Path) -> None:
    world = Evaluated(tmp_path)
    try:
        world.run(
            "kept", *(f"eval.tasks.{name}.file=null" for name in world.names if name not in ("harmbench", "xteaming")),
            "actors.attacker.restore_from_path=null", f"actors.attacker.remote.urls=[{world.endpoint.url}]",
            "actors.attacker.remote.model=wily",
            f"+eval.tasks.best={{benchmark: harmbench, file: {world.files['harmbench']}, attacker: best_of_n, "
            "attempts: 2}",
        )  # fmt: skip
    finally:
        world.close()
    found = {
        kind: sorted(
            json.loads(line)["key"]
            for path in world.folder("kept").glob(f"{kind}/*.jsonl")
            for line in path.read_text().splitlines()
        )
        for kind in ("answers", "verdicts")
    }
    assert all(found.values())
    assert found == frozen("evaluation keys", found)


def test_a_question_has_the_key_that_is_frozen() -> None:
    found = [
        cache_key({"role": "defender", "remote": "tiny"}, [["user", "hello"]]),
        cache_key({"identity": {"b": 1, "a": [1.5, None]}, "sampling": {"top_p": 0.9}}, [["user", "é – x"]], 2**63),
        cache_key("rules@1", {"prompt": "a", "response": "b"}),
    ]
    assert found == frozen("questions", found)


@pytest.mark.process
def test_a_league_keeps_attacks_and_games_under_the_keys_that_are_frozen() -> None:
    done = zygote.run(zygote.script(Path(__file__).with_name("league_keys.py")), timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len({*found["one turn"], *found["two turns"]}) == 8
    assert found == frozen("league keys", found)
