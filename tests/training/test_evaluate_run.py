"""An evaluation of the run's own models says what the run said at its end, at any layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.evaluation.transcripts import read_transcript
from tests.training.program import SMALL, Game, played, run

pytestmark = pytest.mark.process

Figures = dict[tuple[str, str], float]


def evaluation(game: Game, unbroken: Path, name: str, *overrides: str) -> tuple[str, Figures]:
    """What an evaluation of the pair at the end of a run printed, and its rates."""
    folder = game.folder(name)
    done = run(
        "evaluate", "-cn", "eval_sandbox", f"exp_manager.explicit_log_dir={folder}",
        f"sandbox.folder={game.home / 'sandbox'}", *SMALL,
        f"actors.attacker.restore_from_path={unbroken / 'snapshots/attacker/phase-01'}",
        f"actors.defender.restore_from_path={unbroken / 'snapshots/defender/phase-02'}", *overrides,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["figures"]
    return done.stdout, {(f["task"], f["figure"]): f["rate"] for f in found}


@pytest.fixture(scope="module")
def evaluated(game: Game, unbroken: Path) -> Figures:
    return evaluation(game, unbroken, "evaluated")[1]


def test_the_bare_seeds_repeat_the_last_column_of_cross_play(evaluated: Figures, unbroken: Path) -> None:
    matrix = json.loads((unbroken / "crossplay.json").read_text())
    assert matrix["attackers"][0] == "no rewrite"
    assert evaluated["test", "harmful asr"] == matrix["asr"][0][-1]
    assert evaluated["test", "benign over-refusal"] == matrix["over_refusal"][-1]
    assert evaluated["test", "benign useful"] == matrix["useful"][-1]


def test_one_rewrite_by_the_attacker_repeats_the_last_validation(evaluated: Figures, unbroken: Path) -> None:
    last = played(unbroken)[-1]
    assert evaluated["validation", "harmful asr"] == last["val_rollouts/asr"]
    assert evaluated["validation", "harmful refusal"] == last["val_rollouts/refusal_harmful"]
    assert evaluated["validation", "benign over-refusal"] == last["val_rollouts/over_refusal"]
    assert evaluated["validation", "benign useful"] == last["val_rollouts/useful"]


def test_the_rewrites_are_those_of_the_last_validation_as_far_as_their_lengths_tell(
    game: Game, evaluated: Figures, unbroken: Path
) -> None:
    # What a game this short has learned succeeds nowhere; how long its rewrites are is all its own.
    rows = [
        json.loads(line)["value"]
        for path in game.folder("evaluated").glob("answers/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    tokens = [len(text.split()) + finished for text, finished in rows if text.startswith("<think>")]
    last = played(unbroken)[-1]
    assert last["val_rollouts/format_ok"] == 1
    assert sum(tokens) / len(tokens) == pytest.approx(last["val_rollouts/response_tokens_attacker"])


def test_another_layout_goes_on_with_what_was_answered_and_says_the_same(
    game: Game, unbroken: Path, evaluated: Figures
) -> None:
    def answers() -> list[str]:
        paths = game.folder("evaluated").glob("answers/*.jsonl")
        return [line for path in sorted(paths) for line in path.read_text().splitlines()]

    def said(name: str) -> dict[str, list[dict[str, Any]]]:
        rows = {task: list(read_transcript(game.folder(name), task)) for task in ("test", "validation")}
        return {task: sorted(some, key=lambda row: str(row["id"])) for task, some in rows.items()}

    before, transcript = answers(), said("evaluated")
    tp2 = ["model.tensor_model_parallel_size=2"]
    assert evaluation(game, unbroken, "evaluated", *tp2)[1] == evaluated
    assert answers() == before
    assert evaluation(game, unbroken, "evaluated_tp2", *tp2)[1] == evaluated
    # Two ranks wrote it, and one wrote it anew: every case once.
    assert said("evaluated") == transcript
    assert all(len({row["id"] for row in rows}) == len(rows) > 0 for rows in transcript.values())


def attacked(game: Game, unbroken: Path, name: str, *overrides: str) -> tuple[Figures, dict[str, Any]]:
    """Rates and answers of several sampled attacks, and of conversations, against a defence that asks the judge."""
    task = f"benchmark: seeds, file: {game.home / 'sandbox' / 'seeds.test.jsonl'}, limit: 7"
    figures = evaluation(
        game, unbroken, name, "eval.tasks.test.file=null", "eval.tasks.validation.file=null",
        f"+eval.tasks.best={{{task}, attacker: best_of_n, attempts: 3}}",
        f"+eval.tasks.talk={{{task}, attacker: multi_turn, turns: 2}}",
        "eval.defence.kind=smoothllm", "eval.defence.smoothllm.vote=judge", "eval.defence.smoothllm.copies=3",
        "model.encoder_seq_length=96", *overrides,
    )[1]  # fmt: skip
    paths = game.folder(name).glob("answers/*.jsonl")
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return figures, {row["key"]: row["value"] for row in rows}


def test_attacks_and_defences_are_the_same_at_any_layout_and_on_ranks_with_unequal_shares(
    game: Game, unbroken: Path
) -> None:
    figures, answers = attacked(game, unbroken, "attacked")
    assert figures.keys() >= {("best", "harmful asr, best of 3"), ("talk", "harmful asr")}
    assert attacked(game, unbroken, "attacked_pp2", "model.pipeline_model_parallel_size=2") == (figures, answers)
    assert sum(text.startswith("<think>") for text, _ in answers.values()) >= 7 * 3
