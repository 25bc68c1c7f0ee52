"""A table's rows and columns, their names and texts, and the count of what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_magic.data.cells import is_longer_chat, text_of
from nemo_magic.data.errors import DataError

_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_REASONS = 10
_INSTRUCTION, _INPUT = "instruction", "input"


@dataclass
class DropReport:
    """How many rows were read, how many were dropped for which reason, and what was changed in rows that were kept."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count ``count`` rows as dropped for ``reason``."""
        if count:
            self.dropped[reason] += count

    def change(self, what: str) -> None:
        """Count one row as kept, but changed."""
        self.changed[what] += 1

    @property
    def kept(self) -> int:
        """Rows that were read and not dropped."""
        return self.read - sum(self.dropped.values())

    def __str__(self) -> str:
        text = f"{self.read} rows read, {self.kept} kept"
        if self.dropped:
            text += f" (dropped {_listed(self.dropped)})"
        return f"{text}; {_listed(self.changed)}" if self.changed else text


def _listed(counts: Counter[str]) -> str:
    most = dict(counts.most_common(_MAX_REASONS))
    listed = [f"{reason}: {count}" for reason, count in sorted(most.items())]
    others = counts.total() - sum(most.values())
    return "; ".join([*listed, *([f"{len(counts) - len(most)} other reasons: {others}"] if others else [])])


class RowNames:
    """Names of rows, no two alike: a row is its text and its place, whatever its file calls it.

    A row's name is its id, and its place stands behind one that came before.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, name: str, place: str, report: DropReport) -> str:
        """The name of the row at ``place`` with the id ``name``."""
        if name in self._taken:
            report.change("rows whose id came before, told apart by their place")
            name = f"{name}@{place}"
            while name in self._taken:
                name += "+"
        self._taken.add(name)
        return name


@dataclass(frozen=True)
class Table:
    """A file's rows as they stand, and the names of its columns."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]

    def column(self, content: str, aliases: Sequence[str], chosen: str | None = None, key: str = "") -> str:
        """The column with ``content``: the one ``chosen`` under config ``key``, or the first of ``aliases``.

        Raises:
            DataError: there is none; the message names the columns that exist and those that would do.
        """
        by_name = {name.lower().strip(): name for name in self.columns}
        for name in [chosen] if chosen else aliases:
            if name is not None and name.lower() in by_name:
                return by_name[name.lower()]
        would_do = f"{key}={chosen!r}" if chosen else f"one of {', '.join(aliases)}"
        raise DataError(
            f"{self.path}: no column for the {content} ({would_do}); its columns are: "
            f"{', '.join(self.columns) or 'none'}"
        )

    def has(self, aliases: Sequence[str]) -> bool:
        """Whether any of ``aliases`` is a column."""
        names = {name.lower().strip() for name in self.columns}
        return any(alias in names for alias in aliases)


def refuse_pointer(path: Path, key: str = "file") -> None:
    """Raise DataError for a Git LFS pointer, which a clone without Git LFS has in place of the file."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DataError(f"{key}: {path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its clone")


def read_text(row: Mapping[str, Any], column: str, report: DropReport, what: str = "text") -> str | None:
    """The text in a row's ``column``, which is ``what`` to the reader; None, and the row is counted as dropped, where
    there is none. An ``instruction`` is read with the ``input`` beside it, as Alpaca's rows are meant."""
    text = text_of(row.get(column))
    if not text:
        report.drop(f"empty {what}" if text is not None else f"{what} is no text")
        return None
    if column.lower().strip() == _INSTRUCTION and (name := _beside(row, _INPUT)) is not None:
        more = text_of(row[name])
        if more is None:
            report.drop("input is no text")
            return None
        if more:
            report.change("rows whose input is joined to their instruction")
            text = f"{text}\n\n{more}"
    if is_longer_chat(row.get(column)):
        report.change("chats of which the last user message alone is read")
    return text


def _beside(row: Mapping[str, Any], column: str) -> str | None:
    return next((name for name in row if name.lower().strip() == column), None)
