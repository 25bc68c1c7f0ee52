"""Reads an evaluation's folder: figures, outcomes and conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_magic.evaluation import transcripts
from nemo_magic.evaluation.results import JSON_FILE, Outcomes, read_outcomes
from nemo_magic.evaluation.statistics import PairedComparison, compare_pairs
from nemo_magic.report.records import read_config

FigureRow = Mapping[str, Any]
"""One row of ``results.json``."""


def is_evaluation(folder: Path) -> bool:
    """Whether ``nemo-magic evaluate`` has finished there."""
    return (folder / JSON_FILE).is_file()


class EvaluationFolder:
    """A finished evaluation.

    Raises:
        ValueError: one of its files is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        try:
            self.results: Mapping[str, Any] = json.loads((self.path / JSON_FILE).read_text(encoding="utf-8"))
            self.figures: Mapping[tuple[str, str], FigureRow] = {
                (figure["task"], figure["figure"]): figure for figure in self.results["figures"]
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path / JSON_FILE} holds no results of nemo-magic evaluate: {error!r}") from error
        self.outcomes: Outcomes = read_outcomes(self.path)
        self.config = read_config(self.path)

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks with figures, in order."""
        return list(dict.fromkeys(task for task, _ in self.figures))

    def against(self, other: EvaluationFolder, task: str, figure: str) -> PairedComparison | None:
        """The figure compared with another evaluation's, on units with the same texts; None where one has not measured
        it."""
        ours, theirs = (one.outcomes.get(task, {}).get(figure) for one in (self, other))
        if ours is None or theirs is None:
            return None
        digests = {unit: digest for unit, (digest, _) in ours.items()}
        return compare_pairs(
            {unit: outcome for unit, (_, outcome) in ours.items()},
            {unit: outcome for unit, (digest, outcome) in theirs.items() if digests.get(unit) == digest},
        )

    def transcript(self, task: str) -> Iterator[dict[str, Any]]:
        """The conversations of a task, if they were saved."""
        return transcripts.read_transcript(self.path, task)
