"""Runs side by side: what became of each is what its own files say."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from nemo_magic.cli import main
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.report.records import StepRecord
from nemo_magic.report.sweep_table import outcome
from tests.report.broken_files import BROKEN, break_file


def a_run(folder: Path, steps: int, asr: float) -> Path:
    """A run of ten steps that got so far; its first and last steps were validated."""
    folder.mkdir()
    (folder / "config.yaml").write_text("game:\n  max_steps: 10\n")
    held_out = {"val_rollouts/asr": asr, "val_rollouts/useful": float("nan")}
    records = [StepRecord(0, "start", 0, None, {"val_rollouts/asr": 0.9})]
    records += [StepRecord(n, "defender", 0, "defender", held_out if n == steps else {}) for n in range(1, steps + 1)]
    lines = [json.dumps(record.to_row("now")) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def finish(folder: Path) -> None:
    (folder / "game.png").write_bytes(b"")
    asr = [[0.1, 0.0], [0.5, 0.25], [0.9, 0.75]]
    crossplay = CrossPlay([NO_REWRITE, "start", "phase-01"], ["start", "phase-00"], asr)
    (folder / "crossplay.json").write_text(crossplay.to_json())
    (folder / "strategies.json").write_text(json.dumps({"end": {"worst": 1.0, "mean": 0.125, "asr": {"role": 1.0}}}))


def test_a_sweep_becomes_one_table_in_which_what_did_not_finish_has_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(a_run(tmp_path / "whole", 10, 0.04))
    a_run(tmp_path / "half", 4, 0.5)
    (tmp_path / "early").mkdir()
    names = ["whole", "half", "early", "never"]
    assert main(["sweep-table", *(str(tmp_path / name) for name in names), "--into", str(tmp_path / "table")]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"nemo-magic sweep-table: {tmp_path / 'never'}: no such folder\n"
    head, _, *rows = printed.out.splitlines()
    assert head == (
        "| run | state | ASR | ASR, first attacker | ASR, worst attacker | ASR, worst strategy | ASR, mean strategy |"
    )
    assert rows == [
        "| whole | finished | 4.0 | 25.0 | 75.0 | 100.0 | 12.5 |",
        "| half | stopped after 4 of 10 steps | 50.0 | – | – | – | – |",
        "| early | no steps | – | – | – | – | – |",
        "| never | missing | – | – | – | – | – |",
    ]
    assert (tmp_path / "table/table.md").read_text().splitlines()[2:] == rows
    written = list(csv.DictReader((tmp_path / "table/table.csv").open()))
    assert [(row["run"], row["step"], row["ASR"]) for row in written] == [
        ("whole", "10", "0.04"), ("half", "4", "0.5"), ("early", "", ""), ("never", "", "")
    ]  # fmt: skip
    (whole, *_) = json.loads((tmp_path / "table/table.json").read_text())
    assert whole["ASR, worst strategy"] == 1.0
    assert "useful" not in whole


def test_a_run_that_goes_on_has_not_finished_although_it_once_had(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "longer", 8, 0.1)
    finish(folder)
    assert outcome(folder).state == "finished"
    now = (folder / "game.png").stat().st_mtime + 1
    os.utime(folder / "metrics.jsonl", (now, now))
    assert outcome(folder).state == "stopped after 8 of 10 steps"


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_a_broken_file_is_named_and_costs_no_other_run_its_row(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("whole", "broken"):
        finish(a_run(tmp_path / run, 4, 0.5))
        now = (tmp_path / run / "game.png").stat().st_mtime + 1
        os.utime(tmp_path / run / "metrics.jsonl", (now, now))
    path = break_file(tmp_path / "broken", name, content)
    assert main(["sweep-table", str(tmp_path / "broken"), str(tmp_path / "whole")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"nemo-magic sweep-table: {path} cannot be read: ")
    assert printed.err.count("\n") == 1
    assert [line.split(" | ")[:2] for line in printed.out.splitlines()[2:]] == [
        ["| broken", "unreadable"], ["| whole", "stopped after 4 of 10 steps"]
    ]  # fmt: skip
