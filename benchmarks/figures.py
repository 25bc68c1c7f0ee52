"""What the benchmarks share: the machine they ran on, a Markdown table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nemo_magic.formatting import markdown_table


def settle() -> None:
    """One thread, and no warnings of packages that are not needed; call before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured; ``load`` is the load average of the last minute before it."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "threads": os.environ.get("OMP_NUM_THREADS", "1"),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    } | {package: version(package) for package in ("torch", "transformers", "megatron-core")}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers stand on the right."""
    right = [number for number in range(len(columns)) if not any(isinstance(row[number], str) for row in rows)]
    return markdown_table([columns, *([_cell(value) for value in row] for row in rows)], right)


def fill_marks(text: str, tables: Mapping[str, str], page: str) -> str:
    """The ``text`` of ``page`` with each table between its marks, ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Raises:
        ValueError: the marks of a table are not there.
    """
    for name, content in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} has no marks {begin} and {end}")
        text = f"{text.partition(begin)[0]}{begin}\n{content}\n{end}{text.partition(end)[2]}"
    return text


def report(title: str, tables: Sequence[str], figures: Mapping[str, Any], out: Path | None) -> None:
    """Print ``tables`` below the machine; write ``figures`` with it as JSON to ``out``."""
    where = machine()
    print(f"\n{title}: " + ", ".join(f"{name} {value}" for name, value in where.items()))
    for text in tables:
        print(f"\n{text}", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": where} | dict(figures), indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten to {out}")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return str(value)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
