"""Runs side by side in one table. Imports neither torch nor NeMo.

Each row is what a run's own files say. A run that did not finish has a row too, with what it had measured until then.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_magic.formatting import csv_cell, markdown_table, percent
from nemo_magic.fsync_io import replace_durably
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.report.records import (
    CROSSPLAY_FILE,
    METRICS_FILE,
    PICTURE_FILE,
    STRATEGIES_FILE,
    read_config,
    read_records,
    reading,
)

TABLE = "table"
FINISHED = "finished"

_HELD_OUT = {
    "ASR": "val_rollouts/asr",
    "over-refusal": "val_rollouts/over_refusal",
    "useful": "val_rollouts/useful",
    "refusal, harmful": "val_rollouts/refusal_harmful",
}
"""Column → metric of the last step that was validated."""


@dataclass(frozen=True)
class Outcome:
    """A run's row. ``figures``: column → share in 0..1, of what the run measured."""

    run: str
    state: str
    step: int | None
    figures: Mapping[str, float]


def outcome(folder: Path) -> Outcome:
    """A run's row.

    Raises:
        ValueError: there is no such folder, or one of its files is no such file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    metrics = folder / METRICS_FILE
    with reading(metrics):
        records = read_records(metrics) if metrics.exists() else []
    if not records:
        return Outcome(folder.name, "no steps", None, {})
    validations = [record.metrics for record in records if any(name in record.metrics for name in _HELD_OUT.values())]
    held_out = validations[-1] if validations else {}
    # What could not be measured (a share of nothing) reads back as NaN, and is left out as what was not.
    values = ((column, held_out.get(name, math.nan)) for column, name in _HELD_OUT.items())
    figures = {column: value for column, value in values if not math.isnan(value)}
    return Outcome(folder.name, state_of(folder, records[-1].step), records[-1].step, figures | _at_the_end(folder))


def outcomes_of(folders: Sequence[Path]) -> tuple[list[Outcome], list[str]]:
    """A row for every run, and what is wrong with those that cannot be read."""
    outcomes, faults = [], []
    for folder in folders:
        try:
            outcomes.append(outcome(folder))
        except ValueError as error:
            outcomes.append(Outcome(folder.name, "unreadable" if folder.is_dir() else "missing", None, {}))
            faults.append(str(error))
    return outcomes, faults


def state_of(folder: Path, step: int) -> str:
    """``finished``, or how far a run has come that had done ``step`` steps."""
    # The picture is the last thing a run draws; one that goes on has newer figures than its picture.
    picture, metrics = folder / PICTURE_FILE, folder / METRICS_FILE
    if picture.exists() and picture.stat().st_mtime >= metrics.stat().st_mtime:
        return FINISHED
    game = read_config(folder).get("game", {})
    return f"stopped after {step}" + (f" of {game['max_steps']} steps" if "max_steps" in game else " steps")


def _at_the_end(folder: Path) -> dict[str, float]:
    """The last defender's figures, measured at the end of the run."""
    figures = {}
    if (folder / CROSSPLAY_FILE).exists():
        with reading(folder / CROSSPLAY_FILE):
            crossplay = CrossPlay.load(folder / CROSSPLAY_FILE)
        first = 1 if crossplay.attackers[0] == NO_REWRITE and len(crossplay.attackers) > 1 else 0
        figures = {"ASR, first attacker": crossplay.asr[first][-1], "ASR, worst attacker": crossplay.worst_case()}
    if (folder / STRATEGIES_FILE).exists():
        with reading(folder / STRATEGIES_FILE):
            sweep = json.loads((folder / STRATEGIES_FILE).read_text(encoding="utf-8"))["end"]
            figures |= {f"ASR, {name} strategy": float(sweep[name]) for name in ("worst", "mean")}
    return figures


def columns(outcomes: Sequence[Outcome]) -> list[str]:
    """The figures that any of them has, in the order in which a run measures them."""
    return list(dict.fromkeys(column for one in outcomes for column in one.figures))


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table in Markdown, shares in percent."""
    names = columns(outcomes)
    rows = [[one.run, one.state, *(percent(one.figures.get(name)) for name in names)] for one in outcomes]
    return markdown_table([["run", "state", *names], *rows]) + "\n"


def write(outcomes: Sequence[Outcome], folder: Path) -> None:
    """``table.md`` for people, ``table.csv`` and ``table.json`` with shares in 0..1."""
    folder.mkdir(parents=True, exist_ok=True)
    names = columns(outcomes)
    rows = [{"run": one.run, "state": one.state, "step": one.step, **one.figures} for one in outcomes]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["run", "state", "step", *names], restval="")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    replace_durably(folder / f"{TABLE}.csv", text.getvalue())
    replace_durably(folder / f"{TABLE}.json", json.dumps(rows, indent=1) + "\n")
    replace_durably(folder / f"{TABLE}.md", markdown(outcomes))
