"""The conversations and verdicts of an evaluation, for people to read; each evaluation writes them anew.

The texts may be harmful. They come from the user's own files and from the models, and stay in the evaluation's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nemo_magic.evaluation.example import Example
from nemo_magic.fsync_io import private_folder
from nemo_magic.game.episode import VERDICT_FIELDS, Verdict

FOLDER = "transcripts"


class Transcript:
    """Writes one task's conversations of one rank, a JSON line an example."""

    def __init__(self, folder: Path, task: str, rank: int) -> None:
        self._path = folder / FOLDER / f"{task}.rank-{rank:05d}.jsonl"
        private_folder(self._path.parent)
        self._file: TextIO | None = None

    def add(self, example: Example, exchanges: Sequence[tuple[str, str]], verdict: Verdict) -> None:
        """Write an example: (message, answer) of each turn, and the verdict."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
        verdict_fields = {
            name: str(value) for name in (*VERDICT_FIELDS, "error") if (value := getattr(verdict, name)) is not None
        }
        row = {
            "id": example.id,
            "unit": example.unit,
            "group": example.group,
            "label": None if example.label is None else str(example.label),
            "category": example.category,
            "method": example.method,
            "request": example.request or example.turns[-1],
            "turns": [list(exchange) for exchange in exchanges],
            "verdict": verdict_fields,
        }
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file, if any example was written."""
        if self._file is not None:
            self._file.close()


def remove_transcripts(folder: Path, task: str) -> None:
    """Remove a task's conversations of an earlier evaluation, which may have had more ranks."""
    for path in (folder / FOLDER).glob(f"{task}.rank-*.jsonl"):
        path.unlink()


def read_transcript(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    """The rows of a task, if it was written. A line that a kill cut short is left out."""
    for path in sorted((folder / FOLDER).glob(f"{task}.rank-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)
