"""The experiment's tables, made from its numbers and put between their marks in docs/experiments.md and docs/league.md.

``python benchmarks/experiments.py --pages`` does so; a test compares the pages with what this makes of the numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from arms import ARMS, FREQUENCY, POOLS
from figures import table

DOCS = Path(__file__).resolve().parents[1] / "docs"
Results = Mapping[str, Any]
Row = Mapping[str, Any]

HELD = 0.05
YARDSTICK = {
    "asr_warmed_up": "ASR, warmed-up attacker",
    "asr_best": "ASR, best of the full games",
    "asr_worst_strategy": "ASR, worst strategy",
    "asr_mean_strategy": "ASR, mean strategy",
    "useful_attacked": "useful, warmed-up attacker",
    "useful_worst": "useful, worst attacker",
    "useful_bare": "useful, no attacker",
    "over_refusal_bare": "over-refusal, no attacker",
}


def yardstick(results: Results) -> str:
    """Every arm's last defenders, after the defenders that they began as, where an arm before began as no such one."""
    rows: list[list[object]] = []
    for arm in ARMS:
        began = [figures for name, figures in results["before"].items() if results["runs"][name]["arm"] == arm]
        if began:
            values = [spread(figures[key] for figures in began) for key in YARDSTICK]
            rows.append([f"before: {ARMS[arm].title}", str(len(began)), *values, ""])
    for arm in ARMS:
        runs = of(results, arm)
        if runs:
            values = [spread(run["yardstick"][key] for run in runs) for key in YARDSTICK]
            gap = spread(run["league"]["exploitability"]["value"] for run in runs if run["league"])
            rows.append([ARMS[arm].title, str(len(runs)), *values, gap])
    return table(["", "defenders", *YARDSTICK.values(), "exploitability, ASR"], rows)


def pools(results: Results) -> str:
    """The latest opponent and the pools, five seeds each."""
    figures: dict[str, Callable[[Row], float | None]] = {
        "ASR, worst attacker of the league": lambda run: run["league"]["worst"]["value"],
        "exploitability, ASR": lambda run: run["league"]["exploitability"]["value"],
        "exploitability, payoff": lambda run: run["league"]["payoff_exploitability"]["value"],
        "attackers forgotten": lambda run: run["league"]["forgotten"],
        "ASR, worst strategy": lambda run: run["yardstick"]["asr_worst_strategy"],
        "steps until it holds": holds_from,
        "useful, worst attacker": lambda run: run["yardstick"]["useful_worst"],
    }
    rows: list[list[object]] = []
    for arm in POOLS:
        runs = of(results, arm)
        rows.append([ARMS[arm].title, str(len(runs)), *(spread(map(figure, runs)) for figure in figures.values())])
    return table(["", "games", *figures], rows)


def holds_from(run: Row) -> float | None:
    """The step from which no attacker of the league had more than 5 % against any kept defender; None: never."""
    league, step = run["league"], None
    for column, name in reversed(list(enumerate(league["defenders"]))):
        if max(row[column] for row in league["asr"]) > HELD:
            break
        step = step_of(name)
    return step


def step_of(name: str) -> int:
    """At which step of a game with phases of ``FREQUENCY`` steps a self of this name was kept."""
    return 0 if name == "start" else FREQUENCY * (1 + int(name.removeprefix("phase-")))


def costs(results: Results) -> str:
    """What a pool's games take of what the same seed's game against the latest takes: median over seeds, and range."""
    figures: dict[str, Callable[[Row], float | None]] = {
        "CPU s of the steps": lambda run: run["cost"] and run["cost"]["cpu"] - results["start_up_cpu"],
        "s a step": lambda run: fmean(run["seconds"].values()),
        "s a step, defender phases": lambda run: run["seconds"]["defender"],
        "s a step, attacker phases": lambda run: run["seconds"]["attacker"],
    }
    latest = {run["seed"]: run for run in of(results, "latest")}
    there = [[value for value in map(figure, latest.values()) if value] for figure in figures.values()]
    absolute = [f"{median(values):.2f}" if values else "–" for values in there]
    rows: list[list[object]] = [[f"{ARMS['latest'].title}, seconds", *absolute]]
    for arm in POOLS[1:]:
        row: list[object] = [f"{ARMS[arm].title} / latest"]
        for figure in figures.values():
            pairs = [(figure(run), figure(latest[run["seed"]])) for run in of(results, arm) if run["seed"] in latest]
            ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
            row.append(f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–")
        rows.append(row)
    return table(["", *figures], rows)


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "yardstick": ("experiments.md", yardstick),
    "pools": ("league.md", pools),
    "costs": ("league.md", costs),
}


def of(results: Results, arm: str) -> list[Row]:
    """The runs of an arm, by seed."""
    return sorted((run for run in results["runs"].values() if run["arm"] == arm), key=lambda run: run["seed"])


def spread(values: Iterable[float | None]) -> str:
    """Mean, and range where there is one; – where nothing was measured. Shares have two digits, steps none."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    digits = 0 if max(there) >= 10 else 2
    mean, low, high = (f"{value:.{digits}f}" for value in (fmean(there), min(there), max(there)))
    return mean if low == high else f"{mean} ({low}–{high})"


def written(page: str, text: str, results: Results) -> str:
    """The ``text`` of docs/``page`` with its tables made anew.

    Raises:
        ValueError: the marks of a table are not there.
    """
    for name, (where, make) in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if where != page:
            continue
        if begin not in text or end not in text:
            raise ValueError(f"docs/{page} has no marks {begin} and {end}")
        made = f"{begin}\n{make(results)}\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, made=made: made, text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def write(numbers: Path) -> None:
    """Tables and pictures of the numbers in this file."""
    import experiment_pictures

    results = json.loads(numbers.read_text(encoding="utf-8"))
    for page in sorted({where for where, _ in TABLES.values()}):
        path = DOCS / page
        path.write_text(written(page, path.read_text(encoding="utf-8"), results), encoding="utf-8")
    experiment_pictures.draw(results, DOCS / "experiments")
