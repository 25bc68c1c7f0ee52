"""The report of a run whose files are no such files, in one line that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.analysis.pool import find_pool
from nemo_magic.cli import main
from tests.report.broken_files import BROKEN, BROKEN_FOR_A_REPORT, break_file
from tests.report.test_sweep_table import a_run, finish


@pytest.mark.parametrize(("name", "content"), [*BROKEN, *BROKEN_FOR_A_REPORT])
def test_a_report_names_the_file_that_is_none(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run", 4, 0.5)
    finish(run)
    sweep = {"worst": 1.0, "mean": 0.125, "asr": {"role": 1.0}}
    (run / "strategies.json").write_text(json.dumps({"start": sweep, "end": sweep}))
    now = (run / "game.png").stat().st_mtime + 1
    os.utime(run / "metrics.jsonl", (now, now))
    path = break_file(run, name, content)
    assert main(["report", str(run)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("nemo-magic report: ")
    assert str(path) in printed
    assert printed.count("\n") == 1
    assert not (run / "report.html").exists()


def test_the_broken_file_of_the_run_beside_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken = (a_run(tmp_path / name, 4, 0.5) for name in ("whole", "broken"))
    path = break_file(broken, "cross-play/league.json", b'{"attackers": []}')
    assert main(["report", str(whole), str(broken)]) == 1
    assert capsys.readouterr().err.startswith(f"nemo-magic report: {path} cannot be read: ")


def test_a_configuration_with_dates_and_odd_keys_is_shown(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 4, 0.5)
    (run / "config.yaml").write_text("game: {max_steps: 10}\nwhen: 2026-11-27\n1: 2\nnull: [2026-11-27]\n")
    other = a_run(tmp_path / "other", 4, 0.5)
    assert main(["report", str(run), str(other)]) == 0


def test_a_sandbox_that_is_none_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", 4, 0.5)
    (run / "config.yaml").write_text("sandbox: {verbs: [a]}\n")
    assert main(["report", str(run)]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [content for name, content in BROKEN if name == "config.yaml"])
def test_a_warm_ups_strange_configuration_is_named_by_the_analysis(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(AnalysisError, match="config.yaml cannot be read: .*; name the pool in analysis.pool"):
        find_pool({"actors": {"attacker": {"restore_from_path": str(tmp_path / "weights")}}})
