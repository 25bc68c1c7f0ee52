"""The experiment's tables, between their marks in docs/experiments.md and docs/league.md.

``python benchmarks/experiments.py --pages`` writes them. A test compares the pages with the tables of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean, median

from arms import ARMS, POOLS
from experiment_results import YARDSTICK, Results, RunResult, runs_of, step_of
from figures import fill_marks, table

HELD = 0.05
"""ASR that a defender who holds does not exceed."""


def yardstick(results: Results) -> str:
    """Every arm's last defenders; before them the defenders that an arm began with and no arm before it did."""
    rows: list[list[object]] = []
    for arm in ARMS:
        first = [figures for name, figures in results["before"].items() if results["runs"][name]["arm"] == arm]
        if first:
            values = [spread(figures[key] for figures in first) for key in YARDSTICK]
            rows.append([f"before: {ARMS[arm].title}", str(len(first)), *values, ""])
    for arm in ARMS:
        runs = runs_of(results, arm)
        if runs:
            values = [spread(run["yardstick"][key] for run in runs) for key in YARDSTICK]
            gap = spread(run["league"]["exploitability"]["value"] for run in runs if run["league"])
            rows.append([ARMS[arm].title, str(len(runs)), *values, gap])
    return table(["", "defenders", *YARDSTICK.values(), "exploitability, ASR"], rows)


def pools(results: Results) -> str:
    """The latest opponent and the pools, five seeds each."""
    figures: dict[str, Callable[[RunResult], float | None]] = {
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
        runs = runs_of(results, arm)
        rows.append([ARMS[arm].title, str(len(runs)), *(spread(map(figure, runs)) for figure in figures.values())])
    return table(["", "games", *figures], rows)


def holds_from(run: RunResult) -> float | None:
    """The step from which no attacker of the league had more than 5 % against any kept defender; None: never."""
    league, step = run["league"], None
    for column, name in reversed(list(enumerate(league["defenders"]))):
        if max(row[column] for row in league["asr"]) > HELD:
            break
        step = step_of(name)
    return step


def costs(results: Results) -> str:
    """Cost of a pool's game over that of the same seed's game against the latest: median and range over seeds."""
    figures: dict[str, Callable[[RunResult], float | None]] = {
        "CPU s of the steps": lambda run: run["cost"] and run["cost"]["cpu"] - results["start_up_cpu"],
        "s a step": lambda run: fmean(run["seconds"].values()),
        "s a step, defender phases": lambda run: run["seconds"]["defender"],
        "s a step, attacker phases": lambda run: run["seconds"]["attacker"],
    }
    latest = {run["seed"]: run for run in runs_of(results, "latest")}
    known = [[value for value in map(figure, latest.values()) if value] for figure in figures.values()]
    absolute = [f"{median(values):.2f}" if values else "–" for values in known]
    rows: list[list[object]] = [[f"{ARMS['latest'].title}, seconds", *absolute]]
    for arm in POOLS[1:]:
        row: list[object] = [f"{ARMS[arm].title} / latest"]
        for figure in figures.values():
            pairs = [
                (figure(run), figure(latest[run["seed"]])) for run in runs_of(results, arm) if run["seed"] in latest
            ]
            ratios = [value / base for value, base in pairs if value and base]
            row.append(f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–")
        rows.append(row)
    return table(["", *figures], rows)


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "yardstick": ("experiments.md", yardstick),
    "pools": ("league.md", pools),
    "costs": ("league.md", costs),
}


def spread(values: Iterable[float | None]) -> str:
    """Mean, and range where there is one; – where nothing was measured. Shares have two digits, steps none."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 0 if max(known) >= 10 else 2
    mean, low, high = (f"{value:.{digits}f}" for value in (fmean(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low}–{high})"


def fill_tables(page: str, text: str, results: Results) -> str:
    """The ``text`` of docs/``page`` with the tables of ``results``.

    Raises:
        ValueError: the marks of a table are not there.
    """
    tables = {name: make(results) for name, (where, make) in TABLES.items() if where == page}
    return fill_marks(text, tables, f"docs/{page}")
