"""How numbers and tables are written for people: reports, summaries and logs write them alike."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

MISSING = "–"
"""Stands where nothing was measured."""


def percent(share: float | None, unit: str = "") -> str:
    """A share (0..1) in percent, with one decimal and ``unit`` after it; ``MISSING`` for None and NaN."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.1f}{unit}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


_FORMULA = ("=", "+", "-", "@", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_cell(value: Any) -> Any:
    """``value`` for a table that people open: a text that a spreadsheet takes for a formula gets a ``'`` before it."""
    if not isinstance(value, str):
        return value
    # Python's csv leaves a carriage return unquoted, and readers begin a row there.
    text = value.replace("\r", " ")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text[:1] in ("\t", "\n") else text


def _markdown_cell(text: str) -> str:
    """Text that is no markup where Markdown is shown: no further cell, no HTML, no link and no image."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("](", "\\](")
    return " ".join(text.splitlines())


def markdown_table(table: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A Markdown table whose first row is its header; ``right``: numbers of the columns that stand on the right."""
    header, *rows = ([_markdown_cell(cell) for cell in row] for row in table)
    rule = ["---:" if number in right else "---" for number in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
