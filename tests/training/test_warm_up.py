"""A warm-up that is killed or asked to end goes on as if nothing had been."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from nemo_magic.cli import EXIT_PREEMPTED
from tests.training.program import SMALL, Game, kill, played, run, start, steps, wait_for

pytestmark = pytest.mark.process

STEPS = 40


def words(game: Game, folder: Path, *overrides: str) -> list[str]:
    """Two ranks, with dropout, so that random states count, and a validation."""
    pool = game.home / "sandbox" / "defender_pool.jsonl"
    return [
        "sft", "-cn", "sft_sandbox_defender", f"exp_manager.explicit_log_dir={folder}", *SMALL,
        f"sandbox.folder={game.home / 'sandbox'}", f"sft.max_steps={STEPS}", "sft.batch_size=8", f"sft.val_pool={pool}",
        "sft.num_val_samples=8", "sft.val_check_interval=10", "model.hidden_dropout=0.1",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=5",
        "exp_manager.checkpoint_callback_params.keep_last=10", *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def warm(game: Game, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warm-up that nobody disturbed."""
    folder = tmp_path_factory.mktemp("warm") / "run"
    run(*words(game, folder))
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    """What a warm-up left, by file."""
    return {path.name: path.read_bytes() for path in (folder / "weights").glob("*.distcp")}


def test_killed_or_asked_to_end_it_ends_as_the_unbroken_one(game: Game, warm: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    training = start(*words(game, folder), log=log)
    wait_for(lambda: list(folder.glob("checkpoints/step_*/COMMITTED")), training, log)
    kill(training)

    before = steps(folder)
    training = start(*words(game, folder), log=log)
    wait_for(lambda: steps(folder) > before, training, log)
    training.send_signal(signal.SIGUSR1)
    assert training.wait() == EXIT_PREEMPTED
    said = log.read_text()
    assert "resumed from" in said
    assert "SIGUSR1 received: saved after" in said

    run(*words(game, folder))
    assert played(folder) == played(warm)
    assert weights(folder) == weights(warm) != {}
    assert not (folder / "checkpoints").exists()


def test_done_it_is_not_done_again_whatever_a_kill_left_beside_its_weights(game: Game, warm: Path) -> None:
    before, described = weights(warm), (warm / "config.yaml").read_bytes()
    left = warm / "checkpoints" / "step_000035"
    left.mkdir(parents=True)
    for name, text in (("state.json", json.dumps({"command": "sft", "config": {}})), ("COMMITTED", "{}")):
        (left / name).write_text(text)
    assert f"defender is warmed up: weights in {warm / 'weights'}" in run(*words(game, warm)).stdout
    assert not (warm / "checkpoints").exists()
    refused = run(*words(game, warm, "sft.max_steps=41"), status=2).stderr
    assert f"{warm} already holds the results of a warm-up (weights)" in refused
    assert (weights(warm), (warm / "config.yaml").read_bytes()) == (before, described)


def test_with_another_pool_or_as_a_game_it_is_refused_and_anew_it_keeps_what_was(game: Game, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    training = start(*words(game, folder), log=log)
    wait_for(lambda: list(folder.glob("checkpoints/step_*/COMMITTED")), training, log)
    kill(training)
    attacks = game.home / "sandbox" / "attack_pool.jsonl"
    refused = run(*words(game, folder, f"sft.pool={attacks}"), status=2).stderr
    assert f"sft.pool: '{game.home / 'sandbox' / 'defender_pool.jsonl'}' before, '{attacks}' now" in refused
    lower = ["actors.defender.model.optim.lr=1e-4"]
    newest = max((folder / "checkpoints").glob("step_*"))
    earliest = min((folder / "checkpoints").glob("step_*"))
    done = int(earliest.name[5:])
    training = start(*words(game, folder, *lower), "--resume", str(earliest), log=log)
    # The checkpoint that it went back to, as its own, and the next one.
    wait_for(lambda: log.read_text().partition(f"resumed from {earliest}")[2].count("committed") > 1, training, log)
    training.send_signal(signal.SIGUSR1)
    assert training.wait() == EXIT_PREEMPTED
    assert "the same command without --resume goes on from there" in log.read_text()
    state = json.loads((earliest / "state.json").read_text())
    assert state["config"]["actors"]["defender"]["model"]["optim"]["lr"] == 1e-4
    rates = [row["train_optim/lr"] for row in played(folder)]
    # In the hundred steps in which it rises, from one end to the other.
    assert rates == pytest.approx([(2e-3 if i < done else 1e-4) * (i + 2) / 101 for i in range(len(rates))])
    assert len(rates) > done
    assert newest == earliest or (folder / "previous-01/checkpoints" / newest.name / "COMMITTED").is_file()

    refused = run(*game.quick("x", f"exp_manager.explicit_log_dir={folder}"), status=2).stderr
    assert "is of a warm-up, and this is a game: choose another name (name=...)" in refused
    run(*words(game, folder, "sft.max_steps=2", "sft.val_pool=null"), "--resume", "never")
    assert steps(folder) == 2
    assert len(list(folder.glob("previous-*/checkpoints/step_*/COMMITTED"))) >= 2
    assert (folder / "weights" / "metadata.json").is_file()


def test_a_game_s_folder_takes_no_warm_up(game: Game, unbroken: Path) -> None:
    refused = run(*words(game, unbroken), status=2).stderr
    assert "is of a game, and this is a warm-up" in refused
