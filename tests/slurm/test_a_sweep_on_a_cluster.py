"""slurm/sweep.sh: Table 5 of the paper as one command, in a real Slurm."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest

from tests.slurm.playing import ROOT, SMALL, Playground

pytestmark = [pytest.mark.slurm, pytest.mark.process]


def test_the_five_ablations_are_one_array_that_shares_a_judge_and_become_one_table(playground: Playground) -> None:
    cluster = playground.cluster
    words = [
        "-cn", "magic_sandbox", *SMALL, "trainer.devices=1", "game.max_steps=2", "game.schedule.freq=1",
        "game.batch_size=4", "game.num_val_samples=8", "game.val_check_interval=2", "game.crossplay.num_seeds=8",
        "game.strategy_sweep=null", "exp_manager.create_tensorboard_logger=false",
    ]  # fmt: skip
    lines = (
        ROOT / "slurm/sweeps/table5_sandbox.txt"
    ).read_text() + "name=doomed ablation=none data.test_files=[nowhere]\n"
    (playground.folder / "six.txt").write_text(lines)
    site = playground.sited("sweep", "MAX_FAILURES=0")
    script = str(ROOT / "slurm/sweep.sh")
    said = playground.shell("bash", script, "--submit", "--at-once=2", "six.txt", *words, site=site)
    judge, array, table = map(playground.job, re.findall(r"^job (\d+)$", said, re.MULTILINE))
    most = 0

    def gathered() -> bool:
        nonlocal most
        most = max(most, len(cluster.run("squeue", "-h", "-t", "R", "-r", "-j", array.number).splitlines()))
        return table.field("JobState") not in ("PENDING", "RUNNING", "COMPLETING")

    table.until(gathered, minutes=12)
    assert table.field("JobState") == "COMPLETED", table.said()
    assert most == 2
    assert judge.ended() == "CANCELLED"

    folder = playground.folder / "runs/sweeps/six"
    found = json.loads((folder / "table.json").read_text())
    presets = ["magic", "no_game", "defender_only", "magic_base", "defender_cot"]
    assert [row["run"] for row in found] == [*(f"table5_sandbox-{preset}" for preset in presets), "doomed"]
    assert [row["state"] for row in found] == ["finished"] * 5 + ["no steps"]
    for row in found[:5]:
        assert row["step"] == 2
        assert 0 <= row["ASR, worst attacker"] <= 1
    assert [row["run"] for row in csv.DictReader((folder / "table.csv").open())] == [row["run"] for row in found]
    markdown = (folder / "table.md").read_text()
    assert markdown in table.said()
    assert markdown.splitlines()[-1] == "| doomed | no steps |" + " – |" * (markdown.splitlines()[0].count("|") - 3)
    # All asked the sweep's judge, and none had one of its own.
    address = json.loads((judge.said().split("judge at ")[1]).split(";")[0])[0]
    for path in playground.folder.glob(f"sweep-{array.number}_*.log"):
        assert f'judge of {folder / "judge"}: ["{address}"]' in path.read_text()
    assert not (folder / "judge/url").exists()
    shutil.rmtree(playground.folder / "runs/sweeps")
