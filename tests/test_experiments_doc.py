"""The pages of the experiment show the numbers that were measured, and the pictures they name are there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "experiments" / "results.json"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("experiment_pages")


@pytest.fixture
def results() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["experiments.md", "league.md"])
def test_the_tables_are_those_of_the_numbers(pages: ModuleType, results: Any, page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert pages.fill_tables(page, text, results) == text, "python benchmarks/experiments.py --pages writes them anew"


def test_a_table_without_its_marks_is_an_error(pages: ModuleType, results: Any) -> None:
    with pytest.raises(ValueError, match=r"docs/experiments\.md has no marks <!-- yardstick: begin -->"):
        pages.fill_tables("experiments.md", "no marks here", results)


def test_every_arm_was_played(pages: ModuleType, results: Any) -> None:
    assert {run["arm"] for run in results["runs"].values()} == set(pages.ARMS)


def test_a_mean_stands_with_its_range_where_there_is_one(pages: ModuleType) -> None:
    assert pages.spread([0.1, 0.2, 0.6]) == "0.30 (0.10–0.60)"
    assert pages.spread([1.0, None, 1.0]) == "1.00"
    assert pages.spread([55, 65]) == "60 (55–65)"
    assert pages.spread([None]) == "–"


def test_a_defender_holds_from_where_none_after_it_falls(pages: ModuleType) -> None:
    league = {
        "defenders": ["start", "phase-00", "phase-02", "phase-04"],
        "asr": [[0.9, 0.0, 0.0, 0.0], [0.9, 0.0, 0.2, 0.05]],
    }
    assert pages.holds_from({"league": league}) == 25
    assert pages.holds_from({"league": league | {"asr": [[0.9, 0.0, 0.0, 0.06]]}}) is None


def test_the_pictures_are_small_and_all_are_shown() -> None:
    shown = re.findall(
        r"!\[[^\]]+\]\((experiments/[^)]+\.png)\)", (ROOT / "docs" / "experiments.md").read_text("utf-8")
    )
    there = sorted(path for path in RESULTS.parent.glob("*.png"))
    assert sorted(ROOT / "docs" / path for path in shown) == there
    assert max(path.stat().st_size for path in there) < 150_000


def percent(shares: list[float]) -> str:
    mean, low, high = (f"{100 * share:.0f}" for share in (sum(shares) / len(shares), min(shares), max(shares)))
    return f"{mean} %" if low == high else f"{mean} % ({low}–{high})"


def test_the_readme_shows_the_numbers_that_were_measured(results: Any) -> None:
    rows = {
        "`game=paper`, 6 games": ("paper", "paper_warmed"),
        "`game=robust`, 6 games": ("robust", "robust_warmed"),
        "`game=robust`, frozen attacker, 3 games": ("defender_only",),
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    for title, arms in rows.items():
        runs = [run for run in results["runs"].values() if run["arm"] in arms]
        own = [percent([sum(run["curves"][name][-5:]) / 5 for run in runs]) for name in ("asr", "useful")]
        opponents = ("asr_warmed_up", "asr_best", "asr_worst_strategy")
        worst = sorted(max(run["yardstick"][name] for name in opponents) for run in runs)
        assert worst[:-1] == [0.0] * (len(runs) - 1)
        any_attack = "0 %" if worst[-1] == 0 else f"0 %, {100 * worst[-1]:.0f} % in one"
        useful = [percent([run["yardstick"][name] for run in runs]) for name in ("useful_attacked", "useful_bare")]
        assert f"| {' | '.join([title, *own, any_attack, *useful])} |" in text
    before = list(results["before"].values())
    assert {(row["asr_worst_strategy"], row["useful_attacked"], row["useful_bare"]) for row in before} == {(1, 1, 1)}
    assert "| before the game | – | – | 100 % | 100 % | 100 % |" in text
