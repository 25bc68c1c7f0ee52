"""What benchmarks/ablations.py measures of a run; the measuring is for a run of its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def test_the_last_self_is_the_last_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    for name in ("start", "phase-04", "phase-99", "phase-100"):
        (tmp_path / name).mkdir()
    assert importlib.import_module("ablations").last_self(tmp_path).name == "phase-100"
