"""A run that cannot be lost: killed, interrupted, starved of its judge or its disk, it goes on as if nothing had been.

``NEMO_MAGIC_KILLS`` is how often the random kills strike at each layout; by default as often as CI has time for.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from nemo_magic.cli import EXIT_PREEMPTED
from tests import waiting
from tests.training.program import (
    MINUTES,
    TP2,
    Game,
    checkpoint_sums,
    counters,
    gone,
    kill,
    played,
    processes_of,
    ranks_of,
    run,
    start,
    start_fresh,
    start_judge,
    steps,
    wait_for,
)

pytestmark = pytest.mark.process

KILLS = {"dp2": 3, "tp2": 1}
if times := os.environ.get("NEMO_MAGIC_KILLS"):
    KILLS = dict.fromkeys(KILLS, int(times))


def restart_from(game: Game, source: Path, name: str, step: int) -> Path:
    """A copy of ``source`` as it was when ``step`` had just been committed."""
    folder = game.folder(name)
    shutil.copytree(source, folder, symlinks=True)
    for path in (folder / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return folder


def same_end(folder: Path, unbroken: Path) -> None:
    """Every figure of every step, every weight, every random state: bit for bit."""
    assert played(folder) == played(unbroken)
    assert checkpoint_sums(folder, 6) == checkpoint_sums(unbroken, 6)
    assert counters(folder, 6) == counters(unbroken, 6)


@pytest.mark.parametrize("layout", ["dp2", "tp2"])
def test_a_run_killed_at_any_moment_ends_as_the_unbroken_one(
    game: Game, layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    unbroken: Path = request.getfixturevalue("unbroken" if layout == "dp2" else "unbroken_tp2")
    name, log, draw = f"killed_{layout}", tmp_path / "log", random.Random(layout)
    words, folder = game.quick(name, *(TP2 if layout == "tp2" else [])), game.folder(name)
    begin = start_fresh if layout == "tp2" else start

    def saving() -> bool:
        return any((folder / "checkpoints").glob(".step_*.partial/*"))

    for number in range(KILLS[layout]):
        begun, training = time.time(), begin(*words, log=log)
        # The moments move through the run: defender phase, attacker phase, defender phase.
        after = 1 + (number * 4) // KILLS[layout]

        def reached(begun: float = begun, after: int = after) -> bool:
            rows = folder / "metrics.jsonl"
            return rows.exists() and rows.stat().st_mtime > begun and steps(folder) > after

        wait_for(reached, training, log)
        assert len(ranks_of(training)) == 2
        if number % 3 == 1:
            wait_for(saving, training, log)
        else:
            time.sleep(draw.uniform(0, 0.5))
        left = processes_of(training)
        kill(training)
        waiting.wait_for(lambda left=left: all(map(gone, left)), MINUTES)  # type: ignore[misc]
    run(*words)
    same_end(folder, unbroken)


def test_a_run_goes_on_at_another_layout(game: Game, unbroken: Path) -> None:
    for name, layout in (
        ("to_tp2", "model.tensor_model_parallel_size=2"),
        ("to_pp2", "model.pipeline_model_parallel_size=2"),
    ):
        folder = restart_from(game, unbroken, name, 1)
        done = run(*game.quick(name, layout))
        assert "random states are begun anew" in done.stdout
        losses = [
            [
                row[key]
                for row in played(where)[2:]
                for key in ("train_optim/loss", "train_optim/grad_norm")
                if key in row
            ]
            for where in (folder, unbroken)
        ]
        assert len(losses[0]) >= 4
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_scheduler_that_asks_is_given_a_checkpoint_and_a_status_of_its_own(
    game: Game, unbroken: Path, tmp_path: Path
) -> None:
    words, folder, log = game.quick("asked"), game.folder("asked"), tmp_path / "log"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        done = steps(folder)
        training = start(*words, log=log)
        wait_for(lambda done=done: steps(folder) > done + (not done), training, log)  # type: ignore[misc]
        # To the process that was started, or, as a scheduler may, to every process there is.
        if number is signal.SIGUSR1:
            training.send_signal(number)
        else:
            for rank in ranks_of(training):
                os.killpg(rank, number)
        assert training.wait(timeout=2 * MINUTES) == EXIT_PREEMPTED, log.read_text()[-4000:]
        assert f"{number.name} received: saved after" in log.read_text()
    timed = run(*words, "exp_manager.max_time_per_run='00:00:00:01'", status=EXIT_PREEMPTED)
    assert "exp_manager.max_time_per_run is over: saved after" in timed.stderr
    run(*words)
    same_end(folder, unbroken)


def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_is_used(game: Game, unbroken: Path) -> None:
    folder = restart_from(game, unbroken, "damaged", 4)
    shard = next((folder / "checkpoints/step_000004/policies").glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (folder / "checkpoints/step_000003/state.json").unlink()
    said = run(*game.quick("damaged")).stdout
    assert f"step_000004 is damaged (policies/{shard.name} does not match its checksum)" in said
    assert "step_000003 is damaged (state.json is missing)" in said
    assert "step_000002: 2 of 6 steps are done" in said
    assert (folder / "checkpoints/step_000004.damaged").is_dir()
    same_end(folder, unbroken)


def test_a_disk_that_takes_no_more_ends_the_run_and_leaves_what_was_saved(
    game: Game, unbroken: Path, tmp_path: Path
) -> None:
    folder, log = restart_from(game, unbroken, "full", 4), tmp_path / "log"
    size = max(path.stat().st_size for path in (folder / "checkpoints/step_000004/policies").iterdir())
    training = start(*game.quick("full"), log=log, limits={resource.RLIMIT_FSIZE: size - 4096})
    assert training.wait(timeout=3 * MINUTES) == 1
    assert "File too large" in log.read_text()
    assert f"The last one that is whole is {folder}/checkpoints/step_000004" in log.read_text()
    assert not list((folder / "checkpoints").glob(".*"))
    run(*game.quick("full"))
    same_end(folder, unbroken)


def test_a_judge_that_stays_away_costs_nothing_but_time(game: Game, unbroken: Path, tmp_path: Path) -> None:
    judge, port = start_judge(game.home, tmp_path, 0)
    log, folder = tmp_path / "log", game.folder("forsaken")
    words = game.quick("forsaken", "judge.launch=false", f'judge.urls=["http://127.0.0.1:{port}"]')
    training = start(*words, "judge.give_up_after=2", log=log)
    try:
        wait_for(lambda: steps(folder) >= 3, training, log)
        judge.kill()
        judge.wait()
        assert training.wait(timeout=2 * MINUTES) == 1
    finally:
        training.kill()
    said = log.read_text()
    assert "JudgeUnavailable: no answer from" in said
    assert "; saved after" in said
    run(*game.quick("forsaken"))
    same_end(folder, unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_whose_judge_is_away_ends_when_it_is_asked_to_and_loses_nothing(
    game: Game, unbroken: Path, tmp_path: Path, number: signal.Signals
) -> None:
    judge, port = start_judge(game.home, tmp_path, 0)
    log, name = tmp_path / "log", f"waiting-{number.name}"
    folder = game.folder(name)
    words = game.quick(name, "judge.launch=false", f'judge.urls=["http://127.0.0.1:{port}"]')
    training = start(*words, "judge.give_up_after=3600", log=log)
    try:
        wait_for(lambda: steps(folder) >= 3, training, log)
        judge.kill()
        judge.wait()
        wait_for(lambda: "waiting for the judge" in log.read_text(), training, log)
        training.send_signal(number)
        assert training.wait(timeout=2 * MINUTES) == EXIT_PREEMPTED, log.read_text()[-4000:]
    finally:
        training.kill()
    assert f"{number.name} received while a server did not answer; saved after" in log.read_text()
    run(*game.quick(name))
    same_end(folder, unbroken)


RIDDLE = """
from pathlib import Path
from nemo_magic.judge.guards.base import Opinion
from nemo_magic.sandbox.rules_guard import RulesGuard

class Riddle(RulesGuard):
    def __init__(self, world, gate):
        super().__init__(world)
        self.gate = Path(gate)

    def opinion(self, item):
        return Opinion(None, None, None, None, None) if self.gate.exists() else super().opinion(item)
"""


def test_a_judge_that_knows_too_little_ends_the_run_at_a_checkpoint(game: Game, unbroken: Path, tmp_path: Path) -> None:
    (tmp_path / "riddle.py").write_text(RIDDLE)
    gate, log, folder = tmp_path / "gate", tmp_path / "log", game.folder("riddle")
    guard = f"judge.guard_config={{world: {game.home / 'sandbox' / 'world.json'}, gate: {gate}}}"
    training = start(*game.quick("riddle", "judge.guard=riddle:Riddle", guard), log=log, modules=tmp_path)
    wait_for(lambda: steps(folder) >= 2, training, log)
    gate.touch()
    assert training.wait(timeout=2 * MINUTES) == 1
    said = log.read_text()
    assert "the judge could not tell for" in said
    assert "judge.max_unknown_share=0.1; saved after" in said
    saved = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))
    assert checkpoint_sums(folder, saved) == checkpoint_sums(unbroken, saved)


def test_updates_that_cannot_be_made_end_the_run_at_a_checkpoint(game: Game, unbroken: Path) -> None:
    limits = ["grpo.skip_grad_norm=1e-9", "grpo.max_skipped_updates=2"]
    said = run(*game.quick("exploding", *limits), status=1).stderr
    assert "2 updates of the defender in a row were not made (grpo.max_skipped_updates=2)" in said
    saved = sorted((game.folder("exploding") / "checkpoints").glob("step_*"))
    assert saved
    last = int(saved[-1].name[5:])
    weights, start = (
        {k: v for k, v in checkpoint_sums(game.folder("exploding"), step).items() if k.endswith(".distcp")}
        for step in (last, 0)
    )
    assert weights == start  # skipped means skipped
    row = next(row for row in played(game.folder("exploding")) if row["step"] == 1)
    assert row["train_optim/skipped_updates"] == 1


def test_a_rank_that_dies_takes_the_others_with_it(game: Game, unbroken: Path, tmp_path: Path) -> None:
    words, folder, log = game.quick("lame"), game.folder("lame"), tmp_path / "log"
    training = start(*words, log=log)
    wait_for(lambda: steps(folder) >= 3, training, log)
    ranks = ranks_of(training)
    os.kill(ranks[1], signal.SIGKILL)
    assert training.wait(timeout=MINUTES) != 0
    assert all(map(gone, ranks))
    run(*words)
    same_end(folder, unbroken)


def test_a_finished_run_is_not_played_again(game: Game, unbroken: Path) -> None:
    folder = restart_from(game, unbroken, "again", 6)
    before = played(folder)
    said = run(*game.quick("again")).stdout
    assert "6 of 6 steps are done" in said
    assert played(folder) == before


def test_another_game_is_not_mixed_into_a_run(game: Game, unbroken: Path) -> None:
    restart_from(game, unbroken, "other", 2)
    said = run(*game.quick("other", "seed=7"), status=2).stderr
    assert "holds a run with other settings" in said
    assert json.loads((game.folder("other") / "checkpoints/step_000002/state.json").read_text())["step"] == 2
