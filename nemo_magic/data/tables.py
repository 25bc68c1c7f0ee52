"""Reading tables whatever their format: jsonl, json, csv, tsv, parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_magic.data.errors import DataError

READABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass
class DropReport:
    """How many rows were read, and how many were left out for which reason."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, count: int = 1) -> None:
        if count:
            self.dropped[reason] += count

    @property
    def kept(self) -> int:
        return self.read - sum(self.dropped.values())

    def __str__(self) -> str:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in sorted(self.dropped.items()))
        return f"{self.read} rows read, {self.kept} kept" + (f" (dropped {reasons})" if reasons else "")


@dataclass(frozen=True)
class Table:
    """A file's rows as they stand, and the names of its columns."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]

    def column(self, wanted: str, aliases: Sequence[str], chosen: str | None = None, key: str = "") -> str:
        """The column that holds ``wanted``: the one ``chosen`` under config ``key``, or the first alias that is there.

        Raises DataError naming what is missing, what was found and what would do.
        """
        by_name = {name.lower().strip(): name for name in self.columns}
        for name in [chosen] if chosen else aliases:
            if name is not None and name.lower() in by_name:
                return by_name[name.lower()]
        would_do = f"{key}={chosen!r}" if chosen else f"one of {', '.join(aliases)}"
        raise DataError(
            f"{self.path}: no column for the {wanted} ({would_do}); its columns are: "
            f"{', '.join(self.columns) or 'none'}"
        )

    def has(self, aliases: Sequence[str]) -> bool:
        names = {name.lower().strip() for name in self.columns}
        return any(alias in names for alias in aliases)


def read_table(path: str | Path, report: DropReport, key: str = "file") -> Table:
    """Read ``path``. Broken jsonl lines are dropped and counted with their line number; text stays text ('NA' too).

    Raises:
        DataError: no such file, an unreadable format, or not a table. ``key`` names the config key that asked for it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{key}: {path} does not exist")
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise DataError(f"{key}: {path} ends in {suffix or 'nothing'}; readable are {', '.join(READABLE)}")
    refuse_pointer(path, key)
    try:
        rows = _read_jsonl(path, report) if suffix == ".jsonl" else _read_whole(path, suffix)
    except (ValueError, OSError, ImportError) as error:
        raise DataError(f"{key}: {path} cannot be read as {suffix[1:]}: {error}") from error
    report.read += len(rows)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise DataError(f"{key}: {path} holds no rows")
    return Table(path, columns, rows)


def refuse_pointer(path: Path, key: str = "file") -> None:
    """Raise DataError for a file that a clone without Git LFS left in place of the one meant."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DataError(f"{key}: {path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its clone")


def text_of(value: Any) -> str:
    """A cell as stripped text; missing values are empty."""
    if value is None or value != value:  # NaN is the one value unequal to itself
        return ""
    return str(value).strip()


def _read_jsonl(path: Path, report: DropReport) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
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
        rows.append(row)
    return rows


def _read_whole(path: Path, suffix: str) -> list[dict[str, Any]]:
    if suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(value, dict):
            value = value.get("data")
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise ValueError('expected a list of objects, or {"data": [...]}')
        return value
    import pandas

    if suffix == ".parquet":
        frame = pandas.read_parquet(path)
    else:
        frame = pandas.read_csv(path, sep="\t" if suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict(orient="records")]
