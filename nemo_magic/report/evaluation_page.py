"""Evaluations on a page: cards, the table of figures, what they are made of, and their cases to browse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_magic.data.catalogue import Metric
from nemo_magic.evaluation.statistics import Paired, percent
from nemo_magic.report.conversations import MAX_TEXT
from nemo_magic.report.evaluation_charts import all_figures
from nemo_magic.report.evaluation_folder import EvaluationFolder

SIGNIFICANT = 0.05
_WORDS = {
    Metric.ASR: ("attack succeeded", "attack failed"),
    Metric.REFUSAL: ("refused", "did not refuse"),
    Metric.COMPLIANCE: ("complied", "did not comply"),
    Metric.OVER_REFUSAL: ("over-refusal", "no over-refusal"),
    Metric.USEFUL: ("useful", "not useful"),
}
"""What is said of a case whose event came about, and of one where it did not."""
UNKNOWN = "no verdict"


@dataclass(frozen=True)
class Cell:
    """A rate as the table has it. ``change``: against the baseline, in points; ``mood``: good, bad, or nothing where
    that may be chance."""

    rate: str
    interval: str
    count: str
    unknown: int
    published: str = ""
    change: str = ""
    note: str = ""
    mood: str = ""


@dataclass(frozen=True)
class Cases:
    """``rows`` of the ``total`` cases of all evaluations of a page."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    with_texts: int = 0

    @property
    def rule(self) -> str:
        """What was chosen, in words."""
        chosen = f"All {self.total:,} cases."
        if len(self.rows) < self.total:
            chosen = (
                f"{len(self.rows):,} of {self.total:,} cases: of every task those that went against a "
                "defender first, then evenly spaced ones."
            )
        texts = "" if self.with_texts == len(self.rows) else f" Of {self.with_texts:,} of them the texts are known."
        return chosen + texts


def overview(one: EvaluationFolder) -> dict[str, Any]:
    """What is said first of an evaluation: its worst figures, and how it stands to its baseline."""
    asr = [(f["rate"], f) for f in one.figures.values() if f["metric"] == Metric.ASR and f["rate"] is not None]
    answered = [
        (f["rate"] if f["higher_is_better"] else 1 - f["rate"], f)
        for f in one.figures.values()
        if f["metric"] in (Metric.COMPLIANCE, Metric.OVER_REFUSAL) and f["rate"] is not None
    ]
    cards = []
    if asr:
        worst, figure = max(asr, key=lambda pair: pair[0])
        cards.append(("highest ASR", f"{100 * worst:.1f} %", f"{_breakable(figure['task'])}, {_span(figure)}"))
    if answered:
        least, figure = min(answered, key=lambda pair: pair[0])
        cards.append(("harmless requests answered, least", f"{100 * least:.1f} %", _breakable(figure["task"])))
    asked = sum(f["count"] + f["unknown"] for f in one.figures.values())
    unknown = sum(f["unknown"] for f in one.figures.values())
    cards.append(("without a verdict", f"{100 * unknown / asked:.1f} %" if asked else "–", f"{unknown:,} of {asked:,}"))
    moods = [cell.mood for cell in (_cell(one, key, one, None) for key in one.figures) if cell.mood]
    if one.results.get("baseline"):
        better, worse = moods.count("good"), moods.count("bad")
        cards.append(("against its baseline", f"{better} better, {worse} worse", f"p < {SIGNIFICANT}, McNemar"))
    return {
        "name": one.name,
        "model": one.results.get("model") or "the defender",
        "guard": one.results.get("guard") or "nobody",
        "baseline": one.results.get("baseline"),
        "path": str(one.path),
        "cards": cards,
        "notes": one.results.get("notes", []),
        "tasks": len(one.tasks),
    }


def table(evaluations: Sequence[EvaluationFolder]) -> list[dict[str, Any]]:
    """A row for every figure: each evaluation's cell. Of several, those after the first are compared with it; one alone
    with its own baseline."""
    first = evaluations[0]
    rows = []
    for key, figure in all_figures(evaluations).items():
        task, name = key
        cells = [
            _cell(one, key, first, None if one is first else one.against(first, task, name)) for one in evaluations
        ]
        rows.append({"task": task, "figure": name, "better": figure["higher_is_better"], "cells": cells})
    return rows


def capability(evaluations: Sequence[EvaluationFolder]) -> list[tuple[str, list[Cell | None]]]:
    """What lm-evaluation-harness found, where that was given: a row for every figure of its."""
    found: dict[str, list[Cell | None]] = {}
    for number, one in enumerate(evaluations):
        for row in one.results.get("capability", ()):
            cells = found.setdefault(row["name"], [None] * len(evaluations))
            error = "" if row["stderr"] is None else f"± {percent(row['stderr'])}"
            published = row.get("published")
            cells[number] = Cell(
                percent(row["value"]), error, f"{row['task']}, {row['metric'].replace(',none', '')}", 0,
                "" if published is None else percent(published),
            )  # fmt: skip
    return list(found.items())


def splits(evaluations: Sequence[EvaluationFolder], by: str) -> list[dict[str, Any]]:
    """Every figure's parts, where it has several: for each part, each evaluation's cell."""
    found = []
    for (task, figure), _ in all_figures(evaluations).items():
        several = [one.figures.get((task, figure), {}).get(by, {}) for one in evaluations]
        names = dict.fromkeys(name for one in several for name in one)
        if len(names) > 1:
            rows = [(name, [_plain(one[name]) if name in one else None for one in several]) for name in names]
            found.append({"title": f"{task}: {figure}", "rows": rows})
    return found


def cases(evaluations: Sequence[EvaluationFolder], max_rows: int, max_bytes: int) -> Cases:
    """Cases to browse, with what came of each in every evaluation; those that went against a defender first where there
    are more than ``max_rows``, or than ``max_bytes`` of texts."""
    tasks = list(dict.fromkeys(task for one in evaluations for task in one.tasks))
    chosen: list[dict[str, Any]] = []
    total = texts = 0
    for task in tasks:
        rows = list(_rows(evaluations, task))
        total += len(rows)
        kept = _chosen(rows, max(1, max_rows // len(tasks)))
        texts += _add_texts(evaluations, task, kept, max_bytes // len(tasks))
        chosen += kept
    return Cases(chosen, total, texts)


def _rows(evaluations: Sequence[EvaluationFolder], task: str) -> Iterator[dict[str, Any]]:
    """A row for every unit (a case, or a behaviour for any-of) of a task."""
    rows: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(evaluations):
        for name, units in one.outcomes.get(task, {}).items():
            figure = one.figures[task, name]
            for unit, (_, came) in units.items():
                row = rows.setdefault(unit, {"task": task, "id": unit, "came": [[] for _ in evaluations], "said": []})
                row["came"][number].append(_came(figure, came))
    for row in rows.values():
        moods = [{mood for _, mood in came} for came in row["came"] if came]
        row["against"] = any("bad" in mood for mood in moods)
        row["differs"] = len({tuple(map(tuple, came)) for came in row["came"] if came}) > 1
        yield row


def _came(figure: Mapping[str, Any], came: bool | None) -> list[str]:
    if came is None:
        return [UNKNOWN, ""]
    yes, no = _WORDS[Metric(figure["metric"])]
    some = f", {figure['figure'].partition(', ')[2]}" if ", any" in figure["figure"] else ""
    return [(yes if came else no) + some, "good" if came is figure["higher_is_better"] else "bad"]


def _chosen(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Up to ``count``, in the order of the file."""
    if len(rows) <= count:
        return rows
    against = [place for place, row in enumerate(rows) if row["against"]]
    others = [place for place, row in enumerate(rows) if not row["against"]]
    places = set(_spaced(against, count))
    places |= set(_spaced(others, count - len(places)))
    return [rows[place] for place in sorted(places)]


def _spaced(places: Sequence[int], count: int) -> Sequence[int]:
    return places if len(places) <= count else [places[i * len(places) // count] for i in range(count)]


def _add_texts(
    evaluations: Sequence[EvaluationFolder], task: str, rows: Sequence[dict[str, Any]], max_bytes: int
) -> int:
    """What was said, for as many rows as ``max_bytes`` hold; how many those are."""
    wanted = {row["id"]: row for row in rows}
    left, have = max_bytes, set()
    for number, one in enumerate(evaluations):
        for told in one.transcript(task):
            row = wanted.get(told["id"], wanted.get(told["unit"]))
            if row is None:
                continue
            row |= {key: told[key] for key in ("label", "category", "method") if told.get(key)}
            turns = [[_cut(text) for text in turn] for turn in told["turns"]]
            size = sum(len(text) for turn in turns for text in turn)
            if size > left:
                continue
            left -= size
            have.add(row["id"])
            row["said"].append(
                {"of": number, "request": _cut(told["request"]), "turns": turns, "verdict": told["verdict"]}
            )
    return len(have)


def _cell(one: EvaluationFolder, key: tuple[str, str], first: EvaluationFolder, pair: Paired | None) -> Cell:
    figure = one.figures.get(key)
    if figure is None:
        return Cell("–", "", "", 0)
    own = figure.get("against_baseline")
    known = own if pair is None and one is first else None
    difference, p, pairs = (known["difference"], known["mid_p"], known["pairs"]) if known else (0.0, 1.0, 0)
    if pair is not None:
        difference, p, pairs = pair.difference, pair.mid_p, pair.pairs
    mood = ""
    if pairs and p < SIGNIFICANT:
        mood = "good" if (difference > 0) is figure["higher_is_better"] else "bad"
    plain = _plain(figure)
    return Cell(
        plain.rate, plain.interval, plain.count, figure["unknown"],
        "" if figure.get("published") is None else percent(figure["published"]),
        f"{100 * difference:+.1f}".replace("-", "−") if pairs else "",
        f"p = {p:.2g}, {pairs:,} pairs" if pairs else "",
        mood,
    )  # fmt: skip


def _plain(rate: Mapping[str, Any]) -> Cell:
    return Cell(percent(rate["rate"]), _span(rate), f"{_number(rate['hits'])} of {rate['count']:,}", rate["unknown"])


def _span(rate: Mapping[str, Any]) -> str:
    return "" if rate["interval"] is None else "{}–{}".format(*map(percent, rate["interval"]))


def _number(value: float) -> str:
    """A mean over attempts may count parts of a case."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _breakable(name: str) -> str:
    """With places where a narrow card may break it."""
    return name.replace("_", "_\u200b")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
