"""What the benchmarks make of their measurements; running them is for a quiet machine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    return importlib.import_module("step")


def timed(**seconds: float) -> dict[str, float]:
    return {f"timers/{name}": value for name, value in seconds.items()}


def test_attacks_written_ahead_are_spread_over_their_phase(step: ModuleType) -> None:
    measured = step.StepSeconds()
    measured.add(timed(generate_attacker=3.0, update=1.0), 4.5)
    measured.add(timed(update=1.0), 1.5)
    measured.add(timed(update=1.0), 1.5)
    found = measured.typical(amortised=True)
    assert found["generate_attacker"] == pytest.approx(1.0)
    assert found["other"] == pytest.approx(0.5)
    assert found["step"] == pytest.approx(2.5)


def test_what_remains_is_taken_within_each_step(step: ModuleType) -> None:
    measured = step.StepSeconds()
    for update, whole in ((1.0, 1.1), (2.0, 2.3), (9.0, 9.2)):
        measured.add(timed(update=update), whole)
    assert measured.typical()["other"] == pytest.approx(0.2)


def test_one_call_per_sample_replaces_the_wait_only(step: ModuleType) -> None:
    measured = step.StepSeconds()
    measured.add(timed(judge_wait=3.0, update=1.0), 4.5)
    measured.one_call.append(1.0)
    found = measured.typical(one_call=True)
    assert found["judge_wait"] == 1.0
    assert found["other"] == pytest.approx(0.5)
    assert found["step"] == pytest.approx(2.5)


@pytest.mark.slow
def test_the_plans_page_has_the_tables_of_the_present_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    tables = importlib.import_module("plan_tables")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.fill_tables(text) == text, "python benchmarks/plan_tables.py writes them anew"
