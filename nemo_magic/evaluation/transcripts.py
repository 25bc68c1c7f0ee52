"""What was said and judged in an evaluation, case by case, for people to read: written anew by each evaluation.

The texts may be harmful. They are the user's own copies' and the model's, and are left in the evaluation's folder only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nemo_magic.evaluation.example import Example
from nemo_magic.game.episode import VERDICT_FIELDS, Verdict

FOLDER = "transcripts"


class Transcript:
    """One task's, of one rank: a line a case."""

    def __init__(self, folder: Path, task: str, rank: int) -> None:
        self._path = folder / FOLDER / f"{task}.rank-{rank:05d}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO | None = None

    def add(self, case: Example, seen: Sequence[tuple[str, str]], verdict: Verdict) -> None:
        """A case, what the defender saw and said in each turn, and the verdict."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
        told = {
            name: str(value) for name in (*VERDICT_FIELDS, "error") if (value := getattr(verdict, name)) is not None
        }
        row = {
            "id": case.id,
            "unit": case.unit,
            "group": case.group,
            "label": None if case.label is None else str(case.label),
            "category": case.category,
            "method": case.method,
            "request": case.request or case.turns[-1],
            "turns": [[shown, said] for shown, said in seen],
            "verdict": told,
        }
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def forget(folder: Path, task: str) -> None:
    """Remove what an earlier evaluation, perhaps of more ranks, left of a task."""
    for path in (folder / FOLDER).glob(f"{task}.rank-*.jsonl"):
        path.unlink()


def read(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    """The rows of a task; none where nothing was written down. A line that a kill cut short is left out."""
    for path in sorted((folder / FOLDER).glob(f"{task}.rank-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)
