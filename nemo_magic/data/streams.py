"""Reading tables, all at once or row by row, their format told by what is in them and not by their name."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from nemo_magic.data.errors import DataError
from nemo_magic.data.tables import DropReport, Table, refuse_pointer

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")

_HEAD = 1 << 16
_LOOKED_AT = 1000
"""Rows in which a format without a header may first name a column."""

Row = dict[str, Any]


@dataclass(frozen=True)
class RowStream:
    """A file's rows, to be gone through once. ``document``: a JSON file that is one object, whole, instead of rows."""

    path: Path
    format: str
    columns: tuple[str, ...]
    rows: Iterator[Row]
    document: dict[str, Any] | None = None

    def column(self, wanted: str, aliases: Sequence[str]) -> str:
        """The first alias that is there. Raises DataError naming what is missing, what was found and what would do."""
        return Table(self.path, self.columns, []).column(wanted, aliases)

    def has(self, aliases: Sequence[str]) -> bool:
        return Table(self.path, self.columns, []).has(aliases)


def stream_table(path: str | Path, report: DropReport, key: str = "file") -> RowStream:
    """Open ``path``, whatever its name ends in; rows are read, and counted in ``report``, as they are asked for.

    A byte-order mark is ignored. Lines of jsonl that are no JSON object, and csv rows with more cells than the header,
    are dropped and counted.

    Raises:
        DataError: no such file, a Git LFS pointer, an empty file, or not a table; while reading, too. ``key`` names the
            config key that asked for it.
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
            rows = _objects(document["data"])
        else:
            rows = _READERS[kind](path, report)
        first = list(islice(rows, _LOOKED_AT))
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(f"{key}: {path} cannot be read as a table: {error}") from error
    if not first:
        raise DataError(f"{key}: {path} holds no rows; {report}")
    columns = tuple(dict.fromkeys(name for row in first for name in row))
    return RowStream(path, kind, columns, _counted(chain(first, rows), report, path, key))


def read_table(path: str | Path, report: DropReport, key: str = "file") -> Table:
    """All rows of ``path``, with the columns that any row has; otherwise as :func:`stream_table`.

    Raises:
        DataError: as there, or where the file is one object and no list of rows.
    """
    stream = stream_table(path, report, key)
    if stream.document is not None:
        raise DataError(f'{key}: {path} cannot be read as a table: expected a list of objects, or {{"data": [...]}}')
    rows = list(stream.rows)
    return Table(stream.path, tuple(dict.fromkeys(name for row in rows for name in row)), rows)


def detect(path: Path) -> str:
    """One of FORMATS, from a file's first bytes. Raises ValueError where they are no text, or there are none."""
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
        except ValueError:
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
    except (ValueError, OSError, csv.Error) as error:
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


def _objects(values: Sequence[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise ValueError(f"element {number} is no object")
        yield value


def _json(path: Path, report: DropReport) -> Iterator[Row]:
    """The elements of an array one by one: all of them at once would take several times the file."""
    with _text(path) as file:
        text = file.read()
    decode, place, number = json.JSONDecoder().raw_decode, text.index("[") + 1, 0
    while True:
        place = _skip(text, place, " \t\r\n")
        if text[place : place + 1] == "]":
            return
        if number:
            if text[place : place + 1] != ",":
                raise ValueError(f"after element {number} of the array there is neither a comma nor its end")
            place = _skip(text, place + 1, " \t\r\n")
        value, place = decode(text, place)
        number += 1
        if not isinstance(value, dict):
            raise ValueError(f"element {number} of the array is no object")
        yield value


def _skip(text: str, place: int, characters: str) -> int:
    while text[place : place + 1] in characters and place < len(text):
        place += 1
    return place


def _jsonl(path: Path, report: DropReport) -> Iterator[Row]:
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                report.read += 1
                report.drop(f"line {number} of {path.name} is no JSON ({error.msg})")
                continue
            if not isinstance(row, dict):
                report.read += 1
                report.drop(f"line {number} of {path.name} is no JSON object")
                continue
            yield row


def _delimited(path: Path, report: DropReport, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"two columns are called {repeated[0]!r}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) > len(header):
                report.read += 1
                report.drop("more cells than the header has columns")
                continue
            yield dict(zip(header, cells, strict=False))


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
