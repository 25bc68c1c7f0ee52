"""A table's rows and columns, and the count of what was left out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_magic.data.errors import DataError

_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass
class DropReport:
    """How many rows were read, and how many were dropped for which reason."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count ``count`` rows as dropped for ``reason``."""
        if count:
            self.dropped[reason] += count

    @property
    def kept(self) -> int:
        """Rows that were read and not dropped."""
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


def text_of(value: Any) -> str:
    """A cell as stripped text; missing values are empty."""
    if value is None or value != value:  # NaN is the one value unequal to itself
        return ""
    return str(value).strip()
