"""Reads the rows of benchmarks' files as examples."""

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
from nemo_magic.evaluation.red_teaming import READERS, deduplicate_attacks, keep_answered
from nemo_magic.game.episode import Label
from nemo_magic.rollout.response_cache import cache_key

MAX_TURNS = 3
"""X-Teaming's longest plan."""


@dataclass(frozen=True)
class LoadedExamples:
    """A benchmark's examples, the report of dropped rows, and notes for the reader."""

    name: str
    examples: list[Example]
    report: DropReport
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join([f"{self.name}: {self.report}", *self.notes])


def load_benchmark(
    name: str, path: str | Path, key: str = "file", limit: int | None = None, with_replies: bool = False
) -> LoadedExamples:
    """Read a benchmark's file. ``limit`` keeps so many examples, labels taking turns. ``with_replies``: of a
    red-teaming tool's file, take the recorded answers too, and not the attacks alone.

    A blank label is unknown: the example is kept, counts in no figure, and is reported. A row whose id an earlier row
    has is dropped; equal texts are kept, as the published figures have them, and reported.

    Raises:
        DataError: the file is missing, is a Git LFS pointer, is no table or another benchmark's, or no row of it can be
            used. ``key`` names the config key that asked for it.
    """
    benchmark = BENCHMARKS[name]
    report = DropReport()
    stream = stream_table(path, report, key)
    notes: list[str] = []
    if benchmark.reader in RECORDED:
        columns = _map_columns(benchmark, stream, name)
        recorded = READERS[benchmark.reader](columns, stream.rows, report, notes)
        examples = (keep_answered if with_replies else deduplicate_attacks)(recorded, report)
    else:
        read = {"rows": _read_rows, "cases": _read_test_cases, "plans": _read_plans}[benchmark.reader]
        examples = list(read(benchmark, stream, report, name))
    if not examples:
        raise DataError(f"{key}: no row of {path} can be used as {benchmark.title}; {report}")
    attempts = max(figure.attempts for figure in benchmark.figures)
    if attempts and len(sample := _sample_plans(examples, attempts)) < len(examples):
        notes.append(
            f"{len(sample)} of {len(examples)} plans are played: {attempts} of a behaviour, drawn by what they say"
        )
        examples = sample
    notes += _compare_with_published(benchmark, examples)
    if limit is not None and limit < len(examples):
        notes.append(f"{limit} of {len(examples)} cases are taken, labels taking turns")
        by_label = [[example for example in examples if example.label is label] for label in (*Label, None)]
        alternating = (example for row in zip_longest(*by_label) for example in row if example is not None)
        examples = list(islice(alternating, limit))
    return LoadedExamples(name, examples, report, notes)


def _sample_plans(examples: Sequence[Example], count: int) -> list[Example]:
    """Up to ``count`` examples of each behaviour, in the order of their digests: like a random draw, but repeatable."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    ids = {
        example.id
        for group in groups.values()
        for example in sorted(group, key=lambda one: cache_key(one.group, one.turns))[:count]
    }
    return [example for example in examples if example.id in ids]


def _map_columns(benchmark: Benchmark, stream: RowStream, name: str) -> dict[str, str]:
    """Field of an example → its column in this file."""
    if stream.document is not None:
        raise DataError(f"{stream.path} holds one JSON object, and {name} ({benchmark.title}) is a list of rows")
    columns, missing = {}, []
    for field_name, aliases in benchmark.columns.items():
        if stream.has(aliases):
            columns[field_name] = stream.column(field_name, aliases)
        elif field_name in benchmark.required:
            missing.append(f"{field_name} ({' or '.join(aliases)})")
    if missing:
        raise DataError(
            f"{stream.path} is no file of {name} ({benchmark.title}): it lacks columns for {', '.join(missing)}; its "
            f"columns are: {', '.join(stream.columns)}"
        )
    return columns


def _read_rows(benchmark: Benchmark, stream: RowStream, report: DropReport, name: str) -> Iterator[Example]:
    columns = _map_columns(benchmark, stream, name)
    fixed, ids = benchmark.label, set[str]()
    text_column, id_column = columns["text"], columns.get("id")
    label_column, flag_column = columns.get("label"), columns.get("adversarial")
    others = [(key, columns[key]) for key in ("request", "category", "method", "behaviour") if key in columns]
    context_column = columns.get("context")
    for number, row in enumerate(stream.rows):
        text = text_of(row.get(text_column))
        if not text:
            report.drop("empty text")
            continue
        row_id = text_of(row.get(id_column)) if id_column else ""
        if row_id and row_id in ids:
            report.drop("an id that came before")
            continue
        texts = {key: _interned_text(row.get(column)) for key, column in others}
        label = fixed
        if label_column:
            label = read_label(row.get(label_column))
            if label is None and (word := text_of(row.get(label_column))):
                report.drop(f"label {word[:40]!r} means neither harmful nor benign")
                continue
        elif benchmark.prefixes:
            label = next((kind for prefix, kind in benchmark.prefixes if texts["category"].startswith(prefix)), None)
        if row_id:
            ids.add(row_id)
        context = text_of(row.get(context_column)) if context_column else ""
        if context:
            # As HarmBench's own direct requests put them together.
            texts["request"], text = text, f"{context}\n\n---\n\n{text}"
        flag = _read_flag(row.get(flag_column)) if flag_column else None
        yield Example(row_id or str(number), (text,), label, adversarial=flag, replies=(), **texts)


def _read_test_cases(benchmark: Benchmark, stream: RowStream, report: DropReport, name: str) -> Iterator[Example]:
    """Rows of BehaviorID, test_case, method; or HarmBench's own nesting, method → BehaviorID → [test_case]."""
    if stream.document is not None:
        rows: Iterator[Mapping[str, Any]] = _flatten_nested(stream.document, report, stream.path)
        columns = {"text": "text", "behaviour": "behaviour", "method": "method"}
    else:
        rows, columns = stream.rows, _map_columns(benchmark, stream, name)
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        cells = {key: text_of(row.get(column)) for key, column in columns.items()}
        if empty := next((key for key in benchmark.required if not cells[key]), None):
            report.drop(f"empty {empty}")
            continue
        behaviour, method = intern(cells["behaviour"]), intern(cells["method"])
        number = counts[behaviour, method]
        counts[behaviour, method] += 1
        yield Example(
            f"{behaviour}/{method}/{number}",
            (cells["text"],),
            benchmark.label,
            cells.get("request", ""),
            cells.get("category", ""),
            method,
            behaviour,
        )


def _flatten_nested(document: Mapping[str, Any], report: DropReport, path: Path) -> Iterator[dict[str, Any]]:
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


def _read_plans(benchmark: Benchmark, stream: RowStream, report: DropReport, name: str) -> Iterator[Example]:
    """One example a plan, wherever it lies in its behaviour's sets of strategies. A plan of more than ``MAX_TURNS`` is
    dropped: a part of it is not the plan."""
    columns = _map_columns(benchmark, stream, name)
    counts: Counter[str] = Counter()
    for number, row in enumerate(stream.rows):
        details = row.get(columns["behaviour"])
        kinds = {str(k).lower(): v for k, v in details.items()} if isinstance(details, Mapping) else {}
        request = text_of(kinds.get("behavior", kinds.get("behaviour")) if kinds else details)
        if not request:
            report.drop("empty behaviour")
            continue
        behaviour = text_of(row.get(columns["id"])) if "id" in columns else ""
        behaviour = behaviour or request
        category = _interned_text(kinds.get("semantic_category", kinds.get("semanticcategory", "")))
        strategy = text_of(row.get(columns["method"])) if "method" in columns else ""
        plans = list(_find_plans(row[columns["plan"]], (strategy,) if strategy else ()))
        if not plans:
            report.drop("no plan of turns")
        # One row may hold many plans, and each of them is read.
        report.read += max(0, len(plans) - 1)
        for method, turns in plans:
            if not turns or not all(turns):
                report.drop("a plan with an empty turn" if turns else "a plan without turns")
            elif len(turns) > MAX_TURNS:
                report.drop(f"a plan of more than {MAX_TURNS} turns")
            else:
                example_id = f"{behaviour}/{counts[behaviour]}"
                counts[behaviour] += 1
                yield Example(example_id, turns, benchmark.label, request, category, method or str(number), behaviour)


def _find_plans(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(strategy, turns) of every plan in ``value``: a list of texts, an object of turns, or objects that hold such."""
    if isinstance(value, Mapping):
        if (plan := value.get("conversation_plan", value.get("turns"))) is not None:
            yield from _find_plans(plan, path)
        elif value and not any(isinstance(inner, Mapping | list) for inner in value.values()):
            turns = {str(name).lower(): turn for name, turn in value.items() if turn is not None}
            ordered = sorted(
                (_turn_number(name), text_of(turns[name])) for name in turns if name.startswith(("turn", "final"))
            )
            if ordered:
                yield "/".join(path), tuple(text for _, text in ordered)
        else:
            for name, inner in value.items():
                yield from _find_plans(inner, (*path, str(name)))
    elif isinstance(value, list):
        if value and all(isinstance(inner, str) for inner in value):
            yield "/".join(path), tuple(map(text_of, value))
        else:
            for number, inner in enumerate(value):
                yield from _find_plans(inner, (*path, str(number)))


def _turn_number(name: str) -> float:
    """The number in a turn's name, as turn_2; final turns come last. Formats with typed columns lose the order."""
    digits = "".join(filter(str.isdigit, name))
    return float("inf") if name.startswith("final") or not digits else float(digits)


def _compare_with_published(benchmark: Benchmark, examples: Sequence[Example]) -> list[str]:
    """In what the examples differ from the published numbers, and how many have no label or a repeated text."""
    labels = Counter(example.label for example in examples)
    groups = Counter(example.group for example in examples)
    counts = {
        "rows": len(examples),
        "harmful": labels[Label.HARMFUL],
        "benign": labels[Label.BENIGN],
        "without a label": labels[None],
        "methods": len({example.method for example in examples}),
        "plans of a behaviour": max(groups.values()),
    }
    notes = [
        f"{what}: {counts[what]}, published {number}"
        for what, number in benchmark.expected.items()
        if counts[what] != number
    ]
    if labels[None]:
        notes.append(f"{labels[None]} without a label: unknown, in no figure")
    repeated = len(examples) - len({example.turns for example in examples})
    if repeated:
        notes.append(f"{repeated} texts came before")
    return notes


def _interned_text(value: Any) -> str:
    return intern(text_of(value))


_FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def _read_flag(value: Any) -> bool | None:
    return _FLAGS.get(text_of(value).lower())
