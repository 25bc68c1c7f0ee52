"""Evaluations on a page: cards, the table of figures, figures by part, and examples to browse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_magic.data.catalogue import Metric
from nemo_magic.evaluation.statistics import PairedComparison
from nemo_magic.formatting import MISSING, percent
from nemo_magic.report.conversations import cut_text
from nemo_magic.report.evaluation_charts import all_figures
from nemo_magic.report.evaluation_folder import EvaluationFolder

SIGNIFICANT = 0.05
_OUTCOMES = {
    Metric.ASR: ("attack succeeded", "attack failed"),
    Metric.REFUSAL: ("refused", "did not refuse"),
    Metric.COMPLIANCE: ("complied", "did not comply"),
    Metric.OVER_REFUSAL: ("over-refusal", "no over-refusal"),
    Metric.USEFUL: ("useful", "not useful"),
}
"""Metric → the outcome where its event came about, and where it did not."""
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
class ExampleSample:
    """``rows``: a sample of the ``total`` units of all evaluations of a page; ``with_texts`` of them have their
    texts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    with_texts: int = 0

    @property
    def rule(self) -> str:
        """Which examples these are, in words."""
        rule = f"All {self.total:,} cases."
        if len(self.rows) < self.total:
            rule = (
                f"{len(self.rows):,} of {self.total:,} cases: of every task those that went against a "
                "defender first, then evenly spaced ones."
            )
        texts = "" if self.with_texts == len(self.rows) else f" Of {self.with_texts:,} of them the texts are known."
        return rule + texts


def overview(one: EvaluationFolder) -> dict[str, Any]:
    """An evaluation's cards: its worst figures, and its comparison with its baseline."""
    asr = [(f["rate"], f) for f in one.figures.values() if f["metric"] == Metric.ASR and f["rate"] is not None]
    answered = [
        (f["rate"] if f["higher_is_better"] else 1 - f["rate"], f)
        for f in one.figures.values()
        if f["metric"] in (Metric.COMPLIANCE, Metric.OVER_REFUSAL) and f["rate"] is not None
    ]
    cards = []
    if asr:
        worst, figure = max(asr, key=lambda pair: pair[0])
        cards.append(("highest ASR", percent(worst, " %"), f"{_breakable(figure['task'])}, {_span(figure)}"))
    if answered:
        least, figure = min(answered, key=lambda pair: pair[0])
        cards.append(("harmless requests answered, least", percent(least, " %"), _breakable(figure["task"])))
    total = sum(f["count"] + f["unknown"] for f in one.figures.values())
    unknown = sum(f["unknown"] for f in one.figures.values())
    share = percent(unknown / total if total else None, " %")
    cards.append(("without a verdict", share, f"{unknown:,} of {total:,}"))
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
    """General capability by lm-evaluation-harness, where it was measured: a row for every figure."""
    table_rows: dict[str, list[Cell | None]] = {}
    for number, one in enumerate(evaluations):
        for row in one.results.get("capability", ()):
            cells = table_rows.setdefault(row["name"], [None] * len(evaluations))
            error = "" if row["stderr"] is None else f"± {percent(row['stderr'])}"
            published = row.get("published")
            cells[number] = Cell(
                percent(row["value"]), error, f"{row['task']}, {row['metric'].replace(',none', '')}", 0,
                "" if published is None else percent(published),
            )  # fmt: skip
    return list(table_rows.items())


def splits(evaluations: Sequence[EvaluationFolder], by: str) -> list[dict[str, Any]]:
    """Every figure's parts, where it has several: for each part, each evaluation's cell."""
    tables = []
    for (task, figure), _ in all_figures(evaluations).items():
        several = [one.figures.get((task, figure), {}).get(by, {}) for one in evaluations]
        names = dict.fromkeys(name for one in several for name in one)
        if len(names) > 1:
            rows = [(name, [_rate_cell(one[name]) if name in one else None for one in several]) for name in names]
            tables.append({"title": f"{task}: {figure}", "rows": rows})
    return tables


def sample_examples(evaluations: Sequence[EvaluationFolder], max_rows: int, max_bytes: int) -> ExampleSample:
    """Examples to browse, with the outcomes in every evaluation. Where there are more than ``max_rows``, or than
    ``max_bytes`` of texts, those that went against a defender come first."""
    tasks = list(dict.fromkeys(task for one in evaluations for task in one.tasks))
    sample: list[dict[str, Any]] = []
    total = texts = 0
    for task in tasks:
        rows = list(_rows(evaluations, task))
        total += len(rows)
        kept = _sample(rows, max(1, max_rows // len(tasks)))
        texts += _add_texts(evaluations, task, kept, max_bytes // len(tasks))
        sample += kept
    return ExampleSample(sample, total, texts)


def _rows(evaluations: Sequence[EvaluationFolder], task: str) -> Iterator[dict[str, Any]]:
    """A row for every unit (an example, or a behaviour for any-of) of a task."""
    rows: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(evaluations):
        for name, units in one.outcomes.get(task, {}).items():
            figure = one.figures[task, name]
            for unit, (_, outcome) in units.items():
                row = rows.setdefault(unit, {"task": task, "id": unit, "came": [[] for _ in evaluations], "said": []})
                row["came"][number].append(_outcome(figure, outcome))
    for row in rows.values():
        moods = [{mood for _, mood in outcomes} for outcomes in row["came"] if outcomes]
        row["against"] = any("bad" in mood for mood in moods)
        row["differs"] = len({tuple(map(tuple, outcomes)) for outcomes in row["came"] if outcomes}) > 1
        yield row


def _outcome(figure: Mapping[str, Any], outcome: bool | None) -> list[str]:
    """The outcome in words, and its mood."""
    if outcome is None:
        return [UNKNOWN, ""]
    yes, no = _OUTCOMES[Metric(figure["metric"])]
    some = f", {figure['figure'].partition(', ')[2]}" if ", any" in figure["figure"] else ""
    return [(yes if outcome else no) + some, "good" if outcome is figure["higher_is_better"] else "bad"]


def _sample(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Up to ``count``, in the order of the file."""
    if len(rows) <= count:
        return rows
    against = [i for i, row in enumerate(rows) if row["against"]]
    others = [i for i, row in enumerate(rows) if not row["against"]]
    numbers = set(_every_nth(against, count))
    numbers |= set(_every_nth(others, count - len(numbers)))
    return [rows[i] for i in sorted(numbers)]


def _every_nth(numbers: Sequence[int], count: int) -> Sequence[int]:
    return numbers if len(numbers) <= count else [numbers[i * len(numbers) // count] for i in range(count)]


def _add_texts(
    evaluations: Sequence[EvaluationFolder], task: str, rows: Sequence[dict[str, Any]], max_bytes: int
) -> int:
    """Add the texts of as many rows as ``max_bytes`` hold; returns their number."""
    by_id = {row["id"]: row for row in rows}
    left, with_texts = max_bytes, set()
    for number, one in enumerate(evaluations):
        for conversation in one.transcript(task):
            row = by_id.get(conversation["id"], by_id.get(conversation["unit"]))
            if row is None:
                continue
            row |= {key: conversation[key] for key in ("label", "category", "method") if conversation.get(key)}
            turns = [[cut_text(text) for text in turn] for turn in conversation["turns"]]
            size = sum(len(text) for turn in turns for text in turn)
            if size > left:
                continue
            left -= size
            with_texts.add(row["id"])
            row["said"].append(
                {
                    "of": number,
                    "request": cut_text(conversation["request"]),
                    "turns": turns,
                    "verdict": conversation["verdict"],
                }
            )
    return len(with_texts)


def _cell(one: EvaluationFolder, key: tuple[str, str], first: EvaluationFolder, pair: PairedComparison | None) -> Cell:
    figure = one.figures.get(key)
    if figure is None:
        return Cell(MISSING, "", "", 0)
    own = figure.get("against_baseline")
    known = own if pair is None and one is first else None
    difference, p, pairs = (known["difference"], known["mid_p"], known["pairs"]) if known else (0.0, 1.0, 0)
    if pair is not None:
        difference, p, pairs = pair.difference, pair.mid_p, pair.pairs
    mood = ""
    if pairs and p < SIGNIFICANT:
        mood = "good" if (difference > 0) is figure["higher_is_better"] else "bad"
    rate = _rate_cell(figure)
    return Cell(
        rate.rate, rate.interval, rate.count, figure["unknown"],
        "" if figure.get("published") is None else percent(figure["published"]),
        f"{100 * difference:+.1f}".replace("-", "−") if pairs else "",
        f"p = {p:.2g}, {pairs:,} pairs" if pairs else "",
        mood,
    )  # fmt: skip


def _rate_cell(rate: Mapping[str, Any]) -> Cell:
    return Cell(percent(rate["rate"]), _span(rate), f"{_number(rate['hits'])} of {rate['count']:,}", rate["unknown"])


def _span(rate: Mapping[str, Any]) -> str:
    return "" if rate["interval"] is None else "{}–{}".format(*map(percent, rate["interval"]))


def _number(value: float) -> str:
    """A mean over attempts may count parts of an example."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _breakable(name: str) -> str:
    """The name with places where a narrow card may break it."""
    return name.replace("_", "_\u200b")
