"""Benchmarks' rows as cases: what a defender is to be shown, and what is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from sys import intern
from typing import Any

from nemo_magic.data.catalogue import BENCHMARKS, RECORDED, Benchmark
from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import read_label
from nemo_magic.data.streams import RowStream, stream_table
from nemo_magic.data.tables import DropReport, text_of
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.red_teaming import READERS, each_attack_once, those_with_answers
from nemo_magic.game.episode import Label
from nemo_magic.rollout.response_cache import cache_key

MAX_TURNS = 3
"""X-Teaming's longest plan."""


@dataclass(frozen=True)
class LoadedExamples:
    """A benchmark's cases, what was left out on the way, and in what they differ from the published numbers."""

    name: str
    cases: list[Example]
    report: DropReport
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join([f"{self.name}: {self.report}", *self.notes])


def load_benchmark(
    name: str, path: str | Path, key: str = "file", limit: int | None = None, answered: bool = False
) -> LoadedExamples:
    """Read a benchmark's file; ``limit`` keeps so many cases, labels taking turns. ``answered``: of what a red-teaming
    tool left, its answers are taken too, and not its attacks alone.

    A blank label is unknown: the case is kept, counts in no figure, and is reported. A row with an id that came before
    is dropped; equal texts are kept, as the published figures have them, and reported.

    Raises:
        DataError: the file is missing, is a Git LFS pointer, is no table or another benchmark's, or no row of it can be
            used. ``key`` names the config key that asked for it.
    """
    benchmark = BENCHMARKS[name]
    report = DropReport()
    stream = stream_table(path, report, key)
    told: list[str] = []
    if benchmark.reader in RECORDED:
        recorded = READERS[benchmark.reader](_columns(benchmark, stream, name), stream.rows, report, told)
        cases = (those_with_answers if answered else each_attack_once)(recorded, report)
    else:
        source = {"rows": _rows, "cases": _precomputed, "plans": _plans}[benchmark.reader]
        cases = list(source(benchmark, stream, report, name))
    if not cases:
        raise DataError(f"{key}: no row of {path} can be used as {benchmark.title}; {report}")
    attempts = max(figure.attempts for figure in benchmark.figures)
    if attempts and len(drawn := _drawn(cases, attempts)) < len(cases):
        told.append(f"{len(drawn)} of {len(cases)} plans are played: {attempts} of a behaviour, drawn by what they say")
        cases = drawn
    notes = [*told, *_notes(benchmark, cases)]
    if limit is not None and limit < len(cases):
        notes.append(f"{limit} of {len(cases)} cases are taken, labels taking turns")
        pools = [[case for case in cases if case.label is label] for label in (*Label, None)]
        turns = (case for several in zip_longest(*pools) for case in several if case is not None)
        cases = list(islice(turns, limit))
    return LoadedExamples(name, cases, report, notes)


def _drawn(cases: Sequence[Example], count: int) -> list[Example]:
    """Up to ``count`` cases of each behaviour, as good as drawn at random and the same each time."""
    groups: dict[str, list[Example]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    kept = {
        case.id
        for group in groups.values()
        for case in sorted(group, key=lambda one: cache_key(one.group, one.turns))[:count]
    }
    return [case for case in cases if case.id in kept]


def _columns(benchmark: Benchmark, stream: RowStream, name: str) -> dict[str, str]:
    """Field of a case → its column in this file."""
    if stream.document is not None:
        raise DataError(f"{stream.path} holds one JSON object, and {name} ({benchmark.title}) is a list of rows")
    found, missing = {}, []
    for wanted, aliases in benchmark.columns.items():
        if stream.has(aliases):
            found[wanted] = stream.column(wanted, aliases)
        elif wanted in benchmark.required:
            missing.append(f"{wanted} ({' or '.join(aliases)})")
    if missing:
        raise DataError(
            f"{stream.path} is no file of {name} ({benchmark.title}): it lacks columns for {', '.join(missing)}; its "
            f"columns are: {', '.join(stream.columns)}"
        )
    return found


def _rows(benchmark: Benchmark, stream: RowStream, report: DropReport, name: str) -> Iterator[Example]:
    columns = _columns(benchmark, stream, name)
    fixed, ids = benchmark.label, set[str]()
    text_column, id_column = columns["text"], columns.get("id")
    label_column, flag_column = columns.get("label"), columns.get("adversarial")
    others = [
        (wanted, columns[wanted]) for wanted in ("request", "category", "method", "behaviour") if wanted in columns
    ]
    context_column = columns.get("context")
    for number, row in enumerate(stream.rows):
        text = text_of(row.get(text_column))
        if not text:
            report.drop("empty text")
            continue
        own = text_of(row.get(id_column)) if id_column else ""
        if own and own in ids:
            report.drop("an id that came before")
            continue
        known = {wanted: _shared(row.get(column)) for wanted, column in others}
        label = fixed
        if label_column:
            label = read_label(row.get(label_column))
            if label is None and (word := text_of(row.get(label_column))):
                report.drop(f"label {word[:40]!r} means neither harmful nor benign")
                continue
        elif benchmark.prefixes:
            label = next((kind for prefix, kind in benchmark.prefixes if known["category"].startswith(prefix)), None)
        if own:
            ids.add(own)
        context = text_of(row.get(context_column)) if context_column else ""
        if context:
            # As HarmBench's own direct requests put them together.
            known["request"], text = text, f"{context}\n\n---\n\n{text}"
        flag = _flag(row.get(flag_column)) if flag_column else None
        yield Example(own or str(number), (text,), label, adversarial=flag, replies=(), **known)


def _precomputed(benchmark: Benchmark, stream: RowStream, report: DropReport, name: str) -> Iterator[Example]:
    """Rows of BehaviorID, test_case, method; or HarmBench's own nesting, method → BehaviorID → [test_case]."""
    if stream.document is not None:
        rows: Iterator[Mapping[str, Any]] = _nested(stream.document, report, stream.path)
        columns = {"text": "text", "behaviour": "behaviour", "method": "method"}
    else:
        rows, columns = stream.rows, _columns(benchmark, stream, name)
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        cells = {wanted: text_of(row.get(column)) for wanted, column in columns.items()}
        if empty := next((wanted for wanted in benchmark.required if not cells[wanted]), None):
            report.drop(f"empty {empty}")
            continue
        behaviour, method = intern(cells["behaviour"]), intern(cells["method"])
        number = seen[behaviour, method]
        seen[behaviour, method] += 1
        yield Example(
            f"{behaviour}/{method}/{number}",
            (cells["text"],),
            benchmark.label,
            cells.get("request", ""),
            cells.get("category", ""),
            method,
            behaviour,
        )


def _nested(document: Mapping[str, Any], report: DropReport, path: Path) -> Iterator[dict[str, Any]]:
    for method, behaviours in document.items():
        if not isinstance(behaviours, Mapping):
            raise DataError(
                f"{path}: {method!r} holds no object; precomputed cases are rows of BehaviorID, test_case and method, "
                "or one object of method → BehaviorID → list of test cases"
            )
        for behaviour, texts in behaviours.items():
            for text in texts if isinstance(texts, list) else [texts]:
                report.read += 1
                yield {"behaviour": behaviour, "method": method, "text": text}


def _plans(benchmark: Benchmark, stream: RowStream, report: DropReport, name: str) -> Iterator[Example]:
    """One case a plan, wherever in its behaviour's sets of strategies it lies. Turns beyond ``MAX_TURNS`` are reported
    and the plan dropped: a part of it is not the plan."""
    columns = _columns(benchmark, stream, name)
    seen: Counter[str] = Counter()
    for number, row in enumerate(stream.rows):
        details = row.get(columns["behaviour"])
        kinds = {str(k).lower(): v for k, v in details.items()} if isinstance(details, Mapping) else {}
        request = text_of(kinds.get("behavior", kinds.get("behaviour")) if kinds else details)
        if not request:
            report.drop("empty behaviour")
            continue
        behaviour = text_of(row.get(columns["id"])) if "id" in columns else ""
        behaviour = behaviour or request
        category = _shared(kinds.get("semantic_category", kinds.get("semanticcategory", "")))
        own = text_of(row.get(columns["method"])) if "method" in columns else ""
        found = list(_turns_of(row[columns["plan"]], (own,) if own else ()))
        if not found:
            report.drop("no plan of turns")
        # One row may hold many plans, and each of them is read.
        report.read += max(0, len(found) - 1)
        for method, turns in found:
            if not turns or not all(turns):
                report.drop("a plan with an empty turn" if turns else "a plan without turns")
            elif len(turns) > MAX_TURNS:
                report.drop(f"a plan of more than {MAX_TURNS} turns")
            else:
                place = seen[behaviour]
                seen[behaviour] += 1
                yield Example(
                    f"{behaviour}/{place}", turns, benchmark.label, request, category, method or str(number), behaviour
                )


def _turns_of(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(strategy, turns) of every plan in ``value``: a list of texts, an object of turns, or objects that hold such."""
    if isinstance(value, Mapping):
        if (plan := value.get("conversation_plan", value.get("turns"))) is not None:
            yield from _turns_of(plan, path)
        elif value and not any(isinstance(inner, Mapping | list) for inner in value.values()):
            turns = {str(name).lower(): turn for name, turn in value.items() if turn is not None}
            said = sorted((_place(name), text_of(turns[name])) for name in turns if name.startswith(("turn", "final")))
            if said:
                yield "/".join(path), tuple(turn for _, turn in said)
        else:
            for name, inner in value.items():
                yield from _turns_of(inner, (*path, str(name)))
    elif isinstance(value, list):
        if value and all(isinstance(inner, str) for inner in value):
            yield "/".join(path), tuple(map(text_of, value))
        else:
            for number, inner in enumerate(value):
                yield from _turns_of(inner, (*path, str(number)))


def _place(name: str) -> float:
    """Where a turn belongs by its name, as turn_2; formats with typed columns do not keep the order of names."""
    digits = "".join(filter(str.isdigit, name))
    return float("inf") if name.startswith("final") or not digits else float(digits)


def _notes(benchmark: Benchmark, cases: Sequence[Example]) -> list[str]:
    labels = Counter(case.label for case in cases)
    groups = Counter(case.group for case in cases)
    found = {
        "rows": len(cases),
        "harmful": labels[Label.HARMFUL],
        "benign": labels[Label.BENIGN],
        "without a label": labels[None],
        "methods": len({case.method for case in cases}),
        "plans of a behaviour": max(groups.values()),
    }
    notes = [
        f"{what}: {found[what]}, published {number}"
        for what, number in benchmark.expected.items()
        if found[what] != number
    ]
    if labels[None]:
        notes.append(f"{labels[None]} without a label: unknown, in no figure")
    repeated = len(cases) - len({case.turns for case in cases})
    if repeated:
        notes.append(f"{repeated} texts came before")
    return notes


def _shared(value: Any) -> str:
    return intern(text_of(value))


_FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def _flag(value: Any) -> bool | None:
    return _FLAGS.get(text_of(value).lower())
