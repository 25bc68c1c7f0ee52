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

from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import read_label
from nemo_magic.data.streams import read_table
from nemo_magic.data.tables import DropReport, text_of
from nemo_magic.game.episode import Message, Seed, Verdict
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import Ask, JudgeItem, make_item
from nemo_magic.net.faults import first_fault

Labels = Mapping[Ask, str]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Labelled:
    """What to ask, and what would be right."""

    item: JudgeItem
    labels: Labels


@dataclass
class Agreement:
    """Of one field: how often each (label, verdict) came; verdicts may be ``unknown``, labels never are."""

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.pairs.total()

    @property
    def unknown_share(self) -> float:
        return sum(n for (_, said), n in self.pairs.items() if said == UNKNOWN) / max(self.total, 1)

    @property
    def agreement(self) -> float | None:
        """Share of the verdicts given that are right; None where none was given."""
        given = [(label == said, n) for (label, said), n in self.pairs.items() if said != UNKNOWN]
        return sum(n for right, n in given if right) / sum(n for _, n in given) if given else None

    @property
    def kappa(self) -> float | None:
        """Cohen's κ of labels and the verdicts given: agreement beyond that of chance (Cohen 1960).

        None where it is undefined: no verdict was given, or both always say the same single thing.
        """
        given = {pair: n for pair, n in self.pairs.items() if UNKNOWN not in pair}
        total = sum(given.values())
        if not total:
            return None
        first, second = Counter[str](), Counter[str]()
        for (a, b), n in given.items():
            first[a] += n
            second[b] += n
        by_chance = sum(first[value] * second[value] for value in first) / total**2
        observed = sum(n for (a, b), n in given.items() if a == b) / total
        return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


@dataclass
class Checked:
    """One judge on one file."""

    guard: str
    verdicts: Sequence[Verdict]
    seconds: Sequence[float]


def read_labelled(path: str | Path) -> tuple[list[Labelled], DropReport]:
    """The rows that have a prompt and a label.

    Raises:
        DataError: the file cannot be read, has no column of labels, or no row of it can be used.
    """
    report = DropReport()
    table = read_table(path, report)
    prompt = table.column("prompt", ("prompt",))
    asked = [ask for ask in Ask if table.has((ask.value,))]
    if not asked:
        columns = ", ".join(table.columns)
        raise DataError(f"{path}: no column of labels (one of {', '.join(Ask)}); its columns are: {columns}")
    rows: list[Labelled] = []
    for number, row in enumerate(table.rows):
        values = {name.lower().strip(): text_of(value) for name, value in row.items()}
        text, response, seed = values[prompt.lower().strip()], values.get("response", ""), values.get("seed", "")
        labels = {ask: values[ask.value].lower() for ask in asked if values.get(ask.value)}
        if not text:
            report.drop("no prompt")
        elif not labels:
            report.drop("no label")
        elif bad := [f"{ask.value} is {said!r}" for ask, said in labels.items() if said not in ask.known]:
            report.drop(f"no such label: {bad[0]}")
        else:
            talk = (Message("user", text), *((Message("assistant", response),) if response else ()))
            label = read_label(values.get("seed_label", ""))
            try:
                item = make_item(
                    str(number), talk, ask=labels, seed=Seed(str(number), seed, label) if seed and label else None
                )
            except ValidationError as error:
                report.drop(first_fault(error))
            else:
                rows.append(Labelled(item, labels))
    if not rows:
        raise DataError(f"{path}: no row can be used: {report}")
    return rows, report


def check(client: JudgeClient, rows: Sequence[Labelled], batch: int, parallel: int, timeout_s: float = 60.0) -> Checked:
    """Have every row judged, ``batch`` a request, ``parallel`` requests at once. Raises what the client raises."""
    guard = client.wait_ready(timeout_s).guard
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]

    def judged(part: Sequence[Labelled]) -> tuple[list[Verdict], float]:
        began = time.monotonic()
        verdicts = client.score([row.item for row in part]).result()
        return verdicts, time.monotonic() - began

    with ThreadPoolExecutor(parallel) as pool:
        results = list(pool.map(judged, batches))
    return Checked(guard, [verdict for verdicts, _ in results for verdict in verdicts], [took for _, took in results])


def against_labels(rows: Sequence[Labelled], checked: Checked) -> dict[Ask, Agreement]:
    """What the judge said beside what is right, by field."""
    found: dict[Ask, Agreement] = {}
    for row, verdict in zip(rows, checked.verdicts, strict=True):
        for ask, label in row.labels.items():
            found.setdefault(ask, Agreement()).pairs[label, str(getattr(verdict, ask))] += 1
    return found


def against_each_other(rows: Sequence[Labelled], one: Checked, two: Checked) -> dict[Ask, Agreement]:
    """What two judges said of the same rows, by field; rows that either cannot tell are left out."""
    found: dict[Ask, Agreement] = {}
    for row, a, b in zip(rows, one.verdicts, two.verdicts, strict=True):
        for ask in row.labels:
            said = str(getattr(a, ask)), str(getattr(b, ask))
            if UNKNOWN not in said:
                found.setdefault(ask, Agreement()).pairs[said] += 1
    return found


def summary(rows: Sequence[Labelled], runs: Sequence[Checked]) -> str:
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


def _confusion(ask: Ask, found: Agreement, rows: str) -> str:
    said = sorted({b for _, b in found.pairs})
    body = [(label, *(str(found.pairs[label, b]) for b in said)) for label in sorted({a for a, _ in found.pairs})]
    return _table((f"{ask.value}: {rows} ↓", *said), body)


def _percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[94], cuts[98]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
