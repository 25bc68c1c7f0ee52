"""How far a judge can be trusted: its verdicts on a labelled file, and how far two judges agree.

Rows of the file have ``prompt`` and, where a response is judged, ``response``; ``seed`` and ``seed_label`` where a
guard needs them; and a column for every field that is labelled: ``prompt_safety``, ``response_safety`` (safe, unsafe,
controversial), ``refusal``, ``helpful``, ``intent_preserved`` (yes, no). A blank label is no label.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from pydantic import ValidationError

from nemo_magic.data.cells import name_of, text_of
from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import read_label
from nemo_magic.data.streams import read_table
from nemo_magic.data.tables import DropReport, read_text
from nemo_magic.formatting import markdown_table
from nemo_magic.game.episode import Message, Seed, Verdict
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import Ask, JudgeItem, make_item
from nemo_magic.net.faults import first_fault

Labels = Mapping[Ask, str]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class LabelledItem:
    """An item, and the right value of each labelled field."""

    item: JudgeItem
    labels: Labels


@dataclass
class Agreement:
    """Of one field: how often each (label, verdict) came; verdicts may be ``unknown``, labels never are."""

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All pairs, unknown verdicts included."""
        return self.pairs.total()

    @property
    def unknown_share(self) -> float:
        """Share of the verdicts that are unknown."""
        return sum(n for (_, value), n in self.pairs.items() if value == UNKNOWN) / max(self.total, 1)

    @property
    def agreement(self) -> float | None:
        """Share of the known verdicts that are right; None where all are unknown."""
        known = [(label == value, n) for (label, value), n in self.pairs.items() if value != UNKNOWN]
        return sum(n for right, n in known if right) / sum(n for _, n in known) if known else None

    @property
    def kappa(self) -> float | None:
        """Cohen's κ of labels and known verdicts: agreement beyond that of chance (Cohen 1960).

        None where it is undefined: all verdicts are unknown, or both have the same single value throughout.
        """
        known = {pair: n for pair, n in self.pairs.items() if UNKNOWN not in pair}
        total = sum(known.values())
        if not total:
            return None
        first, second = Counter[str](), Counter[str]()
        for (a, b), n in known.items():
            first[a] += n
            second[b] += n
        by_chance = sum(first[value] * second[value] for value in first) / total**2
        observed = sum(n for (a, b), n in known.items() if a == b) / total
        return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


@dataclass
class CheckResult:
    """The verdicts of one judge on one file, and the seconds that each request took."""

    guard: str
    verdicts: Sequence[Verdict]
    seconds: Sequence[float]


def read_labelled(path: str | Path) -> tuple[list[LabelledItem], DropReport]:
    """The rows that have a prompt and a label.

    Raises:
        DataError: the file cannot be read, has no column of labels, or no row of it can be used.
    """
    report = DropReport()
    table = read_table(path, report)
    prompt = table.column("prompt", ("prompt",))
    fields = [ask for ask in Ask if table.has((ask.value,))]
    if not fields:
        columns = ", ".join(table.columns)
        raise DataError(f"{path}: no column of labels (one of {', '.join(Ask)}); its columns are: {columns}")
    rows: list[LabelledItem] = []
    for number, row in enumerate(table.rows):
        cells = {name.lower().strip(): value for name, value in row.items()}
        text = read_text(row, prompt, report, "prompt")
        if text is None:
            continue
        response, seed = text_of(cells.get("response")), text_of(cells.get("seed"))
        labels = {ask: name for ask in fields if (name := name_of(cells.get(ask.value)).lower())}
        if response is None or seed is None:
            report.drop(f"{'response' if response is None else 'seed'} is no text")
        elif not labels:
            report.drop("no label")
        elif bad := [f"{ask.value} is {label!r}" for ask, label in labels.items() if label not in ask.known]:
            report.drop(f"no such label: {bad[0]}")
        else:
            conversation = (Message("user", text), *((Message("assistant", response),) if response else ()))
            seed_label = read_label(cells.get("seed_label"))
            try:
                item = make_item(
                    str(number),
                    conversation,
                    ask=labels,
                    seed=Seed(str(number), seed, seed_label) if seed and seed_label else None,
                )
            except ValidationError as error:
                report.drop(first_fault(error))
            else:
                rows.append(LabelledItem(item, labels))
    if not rows:
        raise DataError(f"{path}: no row can be used: {report}")
    return rows, report


def check(
    client: JudgeClient, rows: Sequence[LabelledItem], batch: int, parallel: int, timeout_s: float = 60.0
) -> CheckResult:
    """Have every row judged, ``batch`` a request, ``parallel`` requests at once. Raises what the client raises."""
    guard = client.wait_ready(timeout_s).guard
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]

    def judge(part: Sequence[LabelledItem]) -> tuple[list[Verdict], float]:
        began = time.monotonic()
        verdicts = client.score([row.item for row in part]).result()
        return verdicts, time.monotonic() - began

    with ThreadPoolExecutor(parallel) as pool:
        results = list(pool.map(judge, batches))
    return CheckResult(
        guard, [verdict for verdicts, _ in results for verdict in verdicts], [seconds for _, seconds in results]
    )


def against_labels(rows: Sequence[LabelledItem], checked: CheckResult) -> dict[Ask, Agreement]:
    """The judge's verdicts beside the labels, by field."""
    agreements: dict[Ask, Agreement] = {}
    for row, verdict in zip(rows, checked.verdicts, strict=True):
        for ask, label in row.labels.items():
            agreements.setdefault(ask, Agreement()).pairs[label, str(getattr(verdict, ask))] += 1
    return agreements


def against_each_other(rows: Sequence[LabelledItem], one: CheckResult, two: CheckResult) -> dict[Ask, Agreement]:
    """The verdicts of two judges on the same rows, by field; a row that is unknown to either is left out."""
    agreements: dict[Ask, Agreement] = {}
    for row, a, b in zip(rows, one.verdicts, two.verdicts, strict=True):
        for ask in row.labels:
            pair = str(getattr(a, ask)), str(getattr(b, ask))
            if UNKNOWN not in pair:
                agreements.setdefault(ask, Agreement()).pairs[pair] += 1
    return agreements


def summary(rows: Sequence[LabelledItem], runs: Sequence[CheckResult]) -> str:
    """Markdown: a table and confusion matrices per judge, latencies, and κ where there are two judges."""
    parts: list[str] = []
    for run in runs:
        fields = against_labels(rows, run)
        parts.append(f"## {run.guard}")
        parts.append(_table(
            ("field", "labelled", "unknown", "agreement", "κ"),
            [(ask.value, str(a.total), _share(a.unknown_share), _share(a.agreement), _number(a.kappa))
             for ask, a in sorted(fields.items())],
        ))  # fmt: skip
        parts += [_confusion(ask, a, "label") for ask, a in sorted(fields.items())]
        p50, p95, p99 = _percentiles(run.seconds)
        parts.append(f"{len(run.seconds)} requests: p50 {p50:.3f} s, p95 {p95:.3f} s, p99 {p99:.3f} s")
    if len(runs) == 2:
        between = against_each_other(rows, *runs)
        parts.append(f"## {runs[0].guard} beside {runs[1].guard}")
        parts.append(_table(
            ("field", "both tell", "agreement", "κ"),
            [(ask.value, str(a.total), _share(a.agreement), _number(a.kappa)) for ask, a in sorted(between.items())],
        ))  # fmt: skip
        parts += [_confusion(ask, a, runs[0].guard) for ask, a in sorted(between.items())]
    return "\n\n".join(parts)


def _confusion(ask: Ask, agreement: Agreement, rows: str) -> str:
    pairs = agreement.pairs
    values = sorted({b for _, b in pairs})
    body = [(label, *(str(pairs[label, b]) for b in values)) for label in sorted({a for a, _ in pairs})]
    return _table((f"{ask.value}: {rows} ↓", *values), body)


def _percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[94], cuts[98]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([columns, *rows], right=range(1, len(columns)))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
