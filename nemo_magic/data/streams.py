"""Reading tables, all at once or row by row. Their content decides on their format, not their name."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nemo_magic.data.cells import is_unicode
from nemo_magic.data.errors import DataError
from nemo_magic.data.tables import DropReport, Table, refuse_pointer

if TYPE_CHECKING:
    from _csv import Reader

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")

_HEAD = 1 << 16
_HEADER_ROWS = 1000
"""Rows that the columns are collected from, where the format has no header."""
_NO_UNICODE = "half of a surrogate pair, which is no text"
_FAULTS = (ValueError, OSError, RecursionError)
"""What a damaged file raises. A document may be nested more deeply than Python can follow."""

Row = dict[str, Any]


@dataclass(frozen=True)
class RowStream:
    """A file's rows, to iterate over once. ``document``: the content of a JSON file that is one object and no table."""

    path: Path
    format: str
    columns: tuple[str, ...]
    rows: Iterator[Row]
    document: dict[str, Any] | None = None

    def column(self, content: str, aliases: Sequence[str]) -> str:
        """The first of ``aliases`` that is a column; see ``Table.column``."""
        return Table(self.path, self.columns, []).column(content, aliases)

    def has(self, aliases: Sequence[str]) -> bool:
        """Whether any of ``aliases`` is a column."""
        return Table(self.path, self.columns, []).has(aliases)


def stream_table(path: str | Path, report: DropReport, key: str = "file") -> RowStream:
    """Open ``path``, whatever its name ends in; iterating reads the rows and counts them in ``report``.

    A byte-order mark is ignored. Lines of jsonl that are no JSON object, csv rows with more or fewer cells than the
    header, and rows with half a surrogate pair are dropped and counted.

    Raises:
        DataError: no such file, a Git LFS pointer, an empty file, or not a table, as one is not whose quotes do not
            match; while iterating, too. ``key``: the config key of the file, for messages.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{key}: {path} does not exist")
    refuse_pointer(path, key)
    try:
        kind = detect(path)
        if kind == "json" and isinstance(document := _object(path), dict):
            if not isinstance(document.get("data"), list):
                return RowStream(path, kind, tuple(document), iter(()), document)
            rows = _objects(document["data"], report)
        else:
            rows = _READERS[kind](path, report)
        first = list(islice(rows, _HEADER_ROWS))
    except _FAULTS as error:
        raise DataError(f"{key}: {path} cannot be read as a table: {error}") from error
    if not first:
        raise DataError(f"{key}: {path} holds no rows; {report}")
    columns = tuple(dict.fromkeys(name for row in first for name in row))
    return RowStream(path, kind, columns, _counted(chain(first, rows), report, path, key))


def read_table(path: str | Path, report: DropReport, key: str = "file") -> Table:
    """All rows of ``path``, with the columns that any row has; otherwise as ``stream_table``.

    Raises:
        DataError: as there, or the file is one object and no list of rows.
    """
    stream = stream_table(path, report, key)
    if stream.document is not None:
        raise DataError(f'{key}: {path} cannot be read as a table: expected a list of objects, or {{"data": [...]}}')
    rows = list(stream.rows)
    return Table(stream.path, tuple(dict.fromkeys(name for row in rows for name in row)), rows)


def detect(path: Path) -> str:
    """One of FORMATS, from a file's first bytes. Raises ValueError if it is empty, or neither text nor parquet."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PAR1"):
        return "parquet"
    if b"\x00" in head:
        raise ValueError(f"it is neither text nor parquet; readable are {', '.join(FORMATS)}")
    # The head may end within a character.
    text = head.decode("utf-8-sig", errors="ignore").lstrip()
    if not text:
        raise ValueError("it is empty")
    if text.startswith("["):
        return "json"
    if text.startswith("{"):
        first, _, rest = text.partition("\n")
        try:
            alone = isinstance(json.loads(first), dict)
        except (ValueError, RecursionError):
            # A long first line of jsonl is cut here, and a document of several lines begins with a brace alone.
            alone = not rest and len(head) == _HEAD and path.suffix.lower() == ".jsonl"
        return "jsonl" if alone and (rest.strip() or path.suffix.lower() == ".jsonl") else "json"
    header = text.partition("\n")[0]
    return "tsv" if header.count("\t") > header.count(",") or path.suffix.lower() == ".tsv" else "csv"


def _counted(rows: Iterator[Row], report: DropReport, path: Path, key: str) -> Iterator[Row]:
    try:
        for row in rows:
            report.read += 1
            yield row
    except _FAULTS as error:
        raise DataError(f"{key}: {path} cannot be read on after {report.read} rows: {error}") from error


def _text(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")


def _object(path: Path) -> Any:
    """The document, where it is one object; an array is read piece by piece instead."""
    with _text(path) as file:
        while (character := file.read(1)).isspace():
            pass
        if character != "{":
            return None
        file.seek(0)
        return json.load(file)


def _objects(values: Sequence[Any], report: DropReport) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise ValueError(f"element {number} is no object")
        if _is_written(value, report):
            yield value


def _is_written(row: Row, report: DropReport) -> bool:
    """Whether a row can be written again as UTF-8; one that cannot is counted here, and met nowhere else."""
    if is_unicode(row):
        return True
    report.read += 1
    report.drop(_NO_UNICODE)
    return False


def _json(path: Path, report: DropReport) -> Iterator[Row]:
    """The elements of an array one by one: all of them at once would take several times the file."""
    with _text(path) as file:
        text = file.read()
    escaped = "\\u" in text
    decode, position, number = json.JSONDecoder().raw_decode, text.index("[") + 1, 0
    while True:
        position = _skip(text, position, " \t\r\n")
        if text[position : position + 1] == "]":
            if (position := _skip(text, position + 1, " \t\r\n")) < len(text):
                line = text.count("\n", 0, position) + 1
                raise ValueError(f"line {line}: the array has ended after {number} elements, and the file goes on")
            return
        if number:
            if text[position : position + 1] != ",":
                raise ValueError(f"after element {number} of the array there is neither a comma nor its end")
            position = _skip(text, position + 1, " \t\r\n")
        value, position = decode(text, position)
        number += 1
        if not isinstance(value, dict):
            raise ValueError(f"element {number} of the array is no object")
        if not escaped or _is_written(value, report):
            yield value


def _skip(text: str, position: int, characters: str) -> int:
    while text[position : position + 1] in characters and position < len(text):
        position += 1
    return position


def _jsonl(path: Path, report: DropReport) -> Iterator[Row]:
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                report.read += 1
                report.drop(f"line {number} of {path.name} is no JSON ({getattr(error, 'msg', error)})")
                continue
            if not isinstance(row, dict):
                report.read += 1
                report.drop(f"line {number} of {path.name} is no JSON object")
                continue
            # Only an escape can be half of a pair: the file itself is UTF-8.
            if "\\u" not in line or _is_written(row, report):
                yield row


def _delimited(path: Path, report: DropReport, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _text(path) as file:
        # Strict: a quote that is not closed would otherwise take the rest of the file into its cell.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = [name.strip() for name in _next_row(reader) or []]
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"two columns are called {repeated[0]!r}")
        while (cells := _next_row(reader)) is not None:
            if not cells:
                continue
            if len(cells) != len(header):
                report.read += 1
                report.drop(f"{'more' if len(cells) > len(header) else 'fewer'} cells than the header has columns")
                continue
            yield dict(zip(header, cells, strict=True))


def _next_row(reader: Reader) -> list[str] | None:
    """The next row's cells; None at the end. Raises ValueError that names the line the row begins in."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(
            f"line {line}: a quote opens a cell there that is not closed as it should be ({error}, in line "
            f"{reader.line_num}). A cell that begins with a quote ends with one, and quotes inside are doubled"
        ) from error


def _csv(path: Path, report: DropReport) -> Iterator[Row]:
    return _delimited(path, report, ",")


def _tsv(path: Path, report: DropReport) -> Iterator[Row]:
    return _delimited(path, report, "\t")


def _parquet(path: Path, report: DropReport) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(str(error)) from error


_READERS = {"csv": _csv, "tsv": _tsv, "json": _json, "jsonl": _jsonl, "parquet": _parquet}
