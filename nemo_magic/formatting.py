"""How numbers and tables are written for people: reports, summaries and logs write them alike."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

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


def markdown_table(table: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A Markdown table whose first row is its header; ``right``: numbers of the columns that stand on the right."""
    header, *rows = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table)
    rule = ["---:" if number in right else "---" for number in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
