"""A run's files, and one step of it as a value and as a line of ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CROSSPLAY_FILE = "crossplay.json"
STRATEGIES_FILE = "strategies.json"
PICTURE_FILE = "game.png"
SAMPLES_DIR = "samples"
ALARMS_FILE = "alarms.jsonl"
REPORT_FILE = "report.html"
LEAGUE_FILE = "cross-play/league.json"
ATTACKS_DIR = "attacks"
ATTACKS_FILE = f"{ATTACKS_DIR}/attacks.json"
ATTACK_TABLE_FILE = f"{ATTACKS_DIR}/strategies.csv"
ATTACK_LABELS_FILE = f"{ATTACKS_DIR}/labels.jsonl"

GAME_METRICS = {
    "asr": "attack success (ASR), harmful seeds",
    "over_refusal": "over-refusal, benign seeds",
    "useful": "useful answers, benign seeds",
    "refusal_harmful": "refusals, harmful seeds",
    "intent_preserved": "rewrites that keep the intent",
    "format_ok": "well-formed rewrites",
}
"""Metrics of ``train_rollouts/`` and ``val_rollouts/``, and what they are called in full."""

_OWN_KEYS = ("step", "phase", "phase_index", "learner", "time")


@dataclass(frozen=True)
class StepRecord:
    """The metrics of one step, by the names of docs/metrics.md.

    ``step`` counts finished training steps; step 0 is the state before any training. ``phase``: "defender", "attacker",
    "sft", …; ``phase_index`` numbers the phases from 0. ``learner``: the role whose weights changed, or None.
    """

    step: int
    phase: str
    phase_index: int
    learner: str | None
    metrics: Mapping[str, float]

    @property
    def is_validation(self) -> bool:
        """Whether held-out seeds were played in this step."""
        return any(name.startswith("val_rollouts/") for name in self.metrics)

    def to_row(self, time: str) -> dict[str, Any]:
        """A flat JSON object. JSON has no NaN or infinity; both become null."""
        row: dict[str, Any] = {
            "step": self.step,
            "phase": str(self.phase),
            "phase_index": self.phase_index,
            "learner": None if self.learner is None else str(self.learner),
            "time": time,
        }
        for name, value in self.metrics.items():
            number = float(value)
            row[name] = number if math.isfinite(number) else None
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> StepRecord:
        """Reads what ``to_row`` wrote; null becomes NaN."""
        metrics = {
            name: math.nan if value is None else float(value) for name, value in row.items() if name not in _OWN_KEYS
        }
        return cls(row["step"], row["phase"], row["phase_index"], row["learner"], metrics)


def read_records(path: str | Path) -> list[StepRecord]:
    """The records of a ``metrics.jsonl``, in file order. A last line cut short by a kill is left out."""
    return [StepRecord.from_row(json.loads(line)) for line in whole_lines(path)]


def whole_lines(path: str | Path) -> list[str]:
    """The file's lines that were written to their end, newline included."""
    # Not splitlines: texts hold line separators of other kinds, which JSON leaves as they are.
    *whole, _ = Path(path).read_text(encoding="utf-8").split("\n")
    return [f"{line}\n" for line in whole]
