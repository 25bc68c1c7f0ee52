"""A run's files, and one step of it as a value and as a line of ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CROSSPLAY_FILE = "crossplay.json"
STRATEGIES_FILE = "strategies.json"
PICTURE_FILE = "game.png"
SAMPLES_DIR = "samples"
ALARMS_FILE = "alarms.jsonl"
REPORT_FILE = "report.html"
CROSS_PLAY_DIR = "cross-play"
LEAGUE_FILE = f"{CROSS_PLAY_DIR}/league.json"
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

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SECTIONS = (
    "game", "game.schedule", "judge", "judge.guard_config", "data", "sandbox", "actors", "actors.attacker", "sft",
    "eval",
)  # fmt: skip
"""Parts of a configuration that keys are looked up in."""

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
        step, phase, phase_index, learner = row["step"], row["phase"], row["phase_index"], row["learner"]
        if not (type(step) is type(phase_index) is int and isinstance(phase, str) and isinstance(learner, str | None)):
            raise ValueError("step and phase_index have to be whole numbers, phase and learner words")
        return cls(step, phase, phase_index, learner, metrics)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises ValueError that names ``path`` for whatever its content makes its reader fail with."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {why}") from error


def read_config(folder: Path) -> Mapping[str, Any]:
    """The resolved configuration of a run; empty where none was saved.

    Raises:
        ValueError: it is none.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        return {}
    with reading(path):
        config = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
        config = {} if config is None else config
        if not isinstance(config, Mapping):
            raise ValueError(f"it holds a {type(config).__name__}, and a configuration is a mapping of keys")
        for section in _SECTIONS:
            part: Any = config
            for name in section.split("."):
                part = part.get(name, {})
                if not isinstance(part, Mapping):
                    raise ValueError(f"{section} is {part!r}, and has to be a mapping of keys")
    return config


def read_records(path: str | Path) -> list[StepRecord]:
    """The records of a ``metrics.jsonl``, in file order. A last line cut short by a kill is left out."""
    return [StepRecord.from_row(json.loads(line)) for line in whole_lines(path)]


def whole_lines(path: str | Path) -> list[str]:
    """The file's lines that were written to their end, newline included."""
    # Not splitlines: texts hold line separators of other kinds, which JSON leaves as they are.
    *whole, _ = Path(path).read_text(encoding="utf-8").split("\n")
    return [f"{line}\n" for line in whole]
