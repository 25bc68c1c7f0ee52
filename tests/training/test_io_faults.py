"""What a file system does to a run outside of its checkpoints, and a second run in its folder."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from tests import zygote
from tests.training.program import MINUTES, Game, played, run, start, steps, wait_for
from tests.zygote import environment

pytestmark = pytest.mark.process


def sft(game: Game, folder: Path) -> list[str]:
    return [
        "sft", "-cn", "sft_sandbox_defender", f"sandbox.folder={game.home / 'sandbox'}", "model.num_layers=4",
        "sandbox.attack_rows=400", "sandbox.defender_rows=400", f"exp_manager.explicit_log_dir={folder}",
        "sft.max_steps=60", "sft.batch_size=16", "trainer.devices=1",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["pipe", "/dev/full"])
def test_a_run_goes_on_when_nobody_takes_what_it_prints(game: Game, target: str, tmp_path: Path) -> None:
    if target == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    with open(writer, "wb") as out:
        words = zygote.nemo_magic(*sft(game, tmp_path / "run"))
        training = zygote.start(words, stdout=out, stderr=zygote.STDOUT, env=environment())
    assert training.wait(timeout=3 * MINUTES) == 0
    assert steps(tmp_path / "run") == 60
    assert (tmp_path / "run" / "weights" / "metadata.json").is_file()


def test_a_disk_that_takes_no_snapshot_ends_the_run_with_words_and_leaves_no_half(game: Game, tmp_path: Path) -> None:
    folder, log = game.folder("no_snapshot"), tmp_path / "log"
    largest = max(path.stat().st_size for path in (game.home / "attacker" / "weights").glob("*.distcp"))
    training = start(*game.quick("no_snapshot"), log=log, limits={resource.RLIMIT_FSIZE: largest - 4096})
    assert training.wait(timeout=3 * MINUTES) == 1
    said = log.read_text()
    assert "nemo-magic train: the snapshot " in said
    assert "File too large" in said
    assert "There is no earlier one; when the cause is gone, the same command goes on from there" in said
    assert "Traceback" not in said
    assert not list(folder.glob("snapshots/*/*"))
    assert not list(folder.glob("snapshots/*/.*"))


def test_the_same_command_twice_is_one_run(game: Game, unbroken: Path, tmp_path: Path) -> None:
    words, folder, log = game.quick("twice"), game.folder("twice"), tmp_path / "log"
    first = start(*words, log=log)
    wait_for(lambda: steps(folder) > 1, first, log)
    second = run(*words, status=1)
    assert f"{folder} belongs to another run that goes on: process {first.pid} on " in second.stderr
    assert first.poll() is None
    assert first.wait(timeout=3 * MINUTES) == 0
    assert not list(folder.glob("previous-*"))
    assert played(folder) == played(unbroken)
