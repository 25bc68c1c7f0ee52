"""Reads the rows of benchmarks' files as examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from sys import intern
from typing import Any

from nemo_magic.data.catalogue import BENCHMARKS, RECORDED, Benchmark
from nemo_magic.data.cells import chat_of, name_of, parsed, text_of
from nemo_magic.data.errors import DataError
from nemo_magic.data.seeds import read_label
from nemo_magic.data.streams import RowStream, stream_table
from nemo_magic.data.tables import DropReport, RowNames, read_text
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.red_teaming import READERS, deduplicate_attacks, jailbreaks_of, keep_answered
from nemo_magic.game.episode import Label
from nemo_magic.rollout.response_cache import cache_key


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
    name: str,
    path: str | Path,
    key: str = "file",
    limit: int | None = None,
    with_replies: bool = False,
    as_published: bool = False,
) -> LoadedExamples:
    """Read a benchmark's file, and the other half where it is one of two. ``limit`` keeps so many examples, labels
    taking turns. ``with_replies``: of a red-teaming tool's file, take the recorded answers too, and not the attacks
    alone. ``as_published``: ask and judge as the published evaluation code does (docs/evaluation.md#protocols).

    A blank label is unknown: the example is kept, counts in no figure, and is reported. A row is its text and its
    place: where its id came before, its place is added to it. Equal texts are kept, as the published figures have them,
    and reported; a text that came before under the same id is dropped, for it is one row twice.

    Raises:
        DataError: the file is missing, is a Git LFS pointer, is no table or another benchmark's, or no row of it can be
            used. ``key`` names the config key that asked for it.
    """
    benchmark = BENCHMARKS[name]
    report = DropReport()
    stream = stream_table(path, report, key)
    notes: list[str] = []
    if benchmark.reader in RECORDED:
        stream = jailbreaks_of(stream, report) if benchmark.reader == "jailbreakbench_artifacts" else stream
        columns = _map_columns(benchmark, stream, name)
        recorded = READERS[benchmark.reader](columns, stream.rows, report, notes)
        examples = (keep_answered if with_replies else deduplicate_attacks)(recorded, report)
    else:
        read = READERS_OF_ROWS[benchmark.reader]
        halves = _halves(benchmark, stream)
        examples = [] if halves else list(read(benchmark, stream, report, name, as_published))
        for part, label in halves.items():
            half = replace(benchmark, label=label, required=("text",), columns=_without_label(benchmark))
            rows = _read_rows(half, stream_table(part, report, key), report, name, as_published)
            examples += [replace(example, id=f"{part.stem}/{example.id}") for example in rows]
        notes += [f"{' and '.join(part.name for part in halves)} are read together"] if len(halves) > 1 else []
    if not examples:
        raise DataError(f"{key}: no row of {path} can be used as {benchmark.title}; {report}")
    _refuse_others(name, examples, path, key)
    examples = _told_apart(examples, report)
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


def _halves(benchmark: Benchmark, stream: RowStream) -> dict[Path, Label]:
    """The files that lie beside each other without a label column, and what each one's rows are; none where the
    benchmark is one file."""
    if stream.path.name.lower() not in benchmark.halves or stream.has(benchmark.columns["label"]):
        return {}
    beside = {path.name.lower(): path for path in sorted(stream.path.parent.iterdir())}
    return {beside[name]: label for name, label in benchmark.halves.items() if name in beside}


def _without_label(benchmark: Benchmark) -> dict[str, tuple[str, ...]]:
    return {name: aliases for name, aliases in benchmark.columns.items() if name != "label"}


def _refuse_others(name: str, examples: Sequence[Example], path: str | Path, key: str) -> None:
    """Two files of one shape are told apart by their published numbers of rows."""
    for pair in _OF_ONE_SHAPE:
        for other in pair - {name} if name in pair else ():
            if len(examples) == BENCHMARKS[other].expected["rows"] != BENCHMARKS[name].expected["rows"]:
                raise DataError(
                    f"{key}: {path} has the {len(examples)} rows of {BENCHMARKS[other].title}, and not the "
                    f"{BENCHMARKS[name].expected['rows']} of {BENCHMARKS[name].title}"
                )


def _told_apart(examples: Sequence[Example], report: DropReport) -> list[Example]:
    """The same, each under an id of its own, and none that is its own group under the name of another's group."""
    names, told_apart = RowNames(), []
    behaviours = {example.behaviour for example in examples}
    for place, example in enumerate(examples):
        name = names.of(example.id, str(place), report)
        while not example.behaviour and name in behaviours:
            name = names.of(f"{name}@{place}", str(place), report)
        told_apart.append(example if name == example.id else replace(example, id=name))
    return told_apart


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
    for column, what in benchmark.others.items():
        if stream.has((column,)):
            raise DataError(
                f"{stream.path} is no file of {name} ({benchmark.title}): it is {what}, by its column {column}"
            )
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


def _read_rows(
    benchmark: Benchmark, stream: RowStream, report: DropReport, name: str, as_published: bool = False
) -> Iterator[Example]:
    columns = _map_columns(benchmark, stream, name)
    fixed, rows_seen = benchmark.label, set[tuple[str, str]]()
    text_column, id_column = columns["text"], columns.get("id")
    label_column, flag_column = columns.get("label"), columns.get("adversarial")
    names = [(key, columns[key]) for key in ("category", "method", "behaviour") if key in columns]
    request_column, context_column = columns.get("request"), None if as_published else columns.get("context")
    annotated = columns.get("harm_label") if as_published else None
    for number, row in enumerate(stream.rows):
        text = read_text(row, text_column, report)
        if text is None:
            continue
        own = name_of(row.get(id_column)) if id_column else ""
        text = _as_written(row.get(text_column), text)
        if annotated and not name_of(row.get(annotated)):
            report.drop(f"empty {annotated}, which the published code leaves out")
            continue
        if own and (own, text) in rows_seen:
            report.drop("an id and text that came before")
            continue
        texts = {key: _interned(row.get(column)) for key, column in names}
        label = fixed
        if label_column:
            label = read_label(row.get(label_column))
            if label is None and (word := name_of(row.get(label_column))):
                report.drop(f"label {word[:40]!r} means neither harmful nor benign")
                continue
        elif benchmark.prefixes:
            label = next((kind for prefix, kind in benchmark.prefixes if texts["category"].startswith(prefix)), None)
        context = text_of(row.get(context_column)) if context_column else ""
        request = text_of(row.get(request_column)) if request_column else ""
        if context is None or request is None:
            report.drop(f"{'context' if context is None else 'request'} is no text")
            continue
        if own:
            rows_seen.add((own, text))
        if context:
            # As HarmBench's own direct requests put them together.
            request, text = text, f"{context}\n\n---\n\n{text}"
        flag = _read_flag(row.get(flag_column)) if flag_column else None
        judged_as = request if as_published and label in benchmark.vanilla else ""
        yield Example(
            own or str(number),
            (text,),
            label,
            adversarial=flag,
            replies=(),
            request=intern(request),
            judged_as=intern(judged_as),
            **texts,
        )


def _as_written(cell: Any, text: str) -> str:
    """The text with the blanks around it, where a cell is nothing else: a benchmark's texts are shown as they are."""
    return cell if isinstance(cell, str) and cell.strip() == text else text


def _read_test_cases(
    benchmark: Benchmark, stream: RowStream, report: DropReport, name: str, as_published: bool = False
) -> Iterator[Example]:
    """Rows of BehaviorID, test_case, method; or HarmBench's own nesting, method → BehaviorID → [test_case]."""
    if stream.document is not None:
        rows: Iterator[Mapping[str, Any]] = _flatten_nested(stream.document, report, stream.path)
        columns = {"text": "text", "behaviour": "behaviour", "method": "method"}
    else:
        rows, columns = stream.rows, _map_columns(benchmark, stream, name)
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        text = read_text(row, columns["text"], report)
        if text is None:
            continue
        cells = {key: _interned(row.get(column)) for key, column in columns.items() if key not in ("text", "request")}
        request = text_of(row.get(columns["request"])) if "request" in columns else ""
        if request is None:
            report.drop("request is no text")
            continue
        if empty := next((key for key in ("behaviour", "method") if not cells[key]), None):
            report.drop(f"empty {empty}")
            continue
        text = _as_written(row.get(columns["text"]), text)
        behaviour, method = cells["behaviour"], cells["method"]
        number = counts[behaviour, method]
        counts[behaviour, method] += 1
        yield Example(
            f"{behaviour}/{method}/{number}",
            (text,),
            benchmark.label,
            request,
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


def _read_plans(
    benchmark: Benchmark, stream: RowStream, report: DropReport, name: str, as_published: bool = False
) -> Iterator[Example]:
    """One example a plan, of any number of turns, wherever it lies in its behaviour's sets of strategies."""
    columns = _map_columns(benchmark, stream, name)
    counts: Counter[str] = Counter()
    for number, row in enumerate(stream.rows):
        details = row.get(columns["behaviour"])
        written = parsed(details)
        kinds = {str(k).lower(): v for k, v in written.items()} if isinstance(written, Mapping) else {}
        request = text_of(kinds.get("behavior", kinds.get("behaviour")) if kinds else details)
        if not request:
            report.drop("empty behaviour" if request is not None else "behaviour is no text")
            continue
        behaviour = (name_of(row.get(columns["id"])) if "id" in columns else "") or request
        category = _interned(kinds.get("semantic_category", kinds.get("semanticcategory", "")))
        strategy = name_of(row.get(columns["method"])) if "method" in columns else ""
        try:
            plans = list(_find_plans(parsed(row.get(columns["plan"])), (strategy,) if strategy else ()))
        except RecursionError:
            report.drop("plans that are nested too deeply")
            continue
        if not plans:
            report.drop("no plan of turns")
        # One row may hold many plans, and each of them is read.
        report.read += max(0, len(plans) - 1)
        for method, turns in plans:
            texts = tuple(turn for turn in turns if turn)
            if not turns or len(texts) < len(turns):
                fault = "a turn that is no text" if None in turns else "an empty turn"
                report.drop(f"a plan with {fault}" if turns else "a plan without turns")
            else:
                example_id = f"{behaviour}/{counts[behaviour]}"
                counts[behaviour] += 1
                yield Example(example_id, texts, benchmark.label, request, category, method or str(number), behaviour)


def _find_plans(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """(strategy, turns) of every plan in ``value``: a list of texts, a chat, an object of turns, or objects that hold
    such. A turn that is no text is None."""
    if isinstance(value, Mapping):
        if (plan := value.get("conversation_plan", value.get("turns"))) is not None:
            yield from _find_plans(plan, path)
        elif turns := _turns(value):
            yield "/".join(path), turns
        else:
            for name, inner in value.items():
                yield from _find_plans(inner, (*path, str(name)))
    elif (chat := chat_of(value)) is not None:
        yield "/".join(path), tuple(message.content for message in chat if message.role == "user")
    elif isinstance(value, list):
        if value and not any(isinstance(inner, Mapping | list) for inner in value):
            yield "/".join(path), tuple(map(text_of, value))
        else:
            for number, inner in enumerate(value):
                yield from _find_plans(inner, (*path, str(number)))


def _turns(plan: Mapping[Any, Any]) -> tuple[str | None, ...]:
    """The turns of an object of turns, in order; none of any other object."""
    turns = {
        str(name).lower(): turn
        for name, turn in plan.items()
        if turn is not None and str(name).lower().startswith(("turn", "final"))
    }
    # Strategies may be called so too; they hold plans of their own.
    if any(isinstance(turn, Mapping) and "role" not in turn and "text" not in turn for turn in turns.values()):
        return ()
    return tuple(text_of(turns[name]) for name in sorted(turns, key=_turn_number))


def _turn_number(name: str) -> float:
    """The number in a turn's name, as turn_2; final turns come last. Formats with typed columns lose the order."""
    digits = "".join(filter(str.isdecimal, name))
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


READERS_OF_ROWS = {"rows": _read_rows, "cases": _read_test_cases, "plans": _read_plans}
"""By ``Benchmark.reader``."""

_OF_ONE_SHAPE = (frozenset({"or_bench_hard", "or_bench_toxic"}),)


def _interned(value: Any) -> str:
    return intern(name_of(value))


_FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def _read_flag(value: Any) -> bool | None:
    return _FLAGS.get(name_of(value).lower())
