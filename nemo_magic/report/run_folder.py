"""Reads a run's folder as it grows: metrics, phases, cross-play, strategies, alarms, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_magic.game.alarms import AlarmEvent
from nemo_magic.game.payoff import CrossPlay
from nemo_magic.report.records import (
    ALARMS_FILE,
    ATTACK_LABELS_FILE,
    ATTACKS_FILE,
    CROSSPLAY_FILE,
    LEAGUE_FILE,
    METRICS_FILE,
    STRATEGIES_FILE,
    StepRecord,
    read_config,
    reading,
    whole_lines,
)
from nemo_magic.report.series import Buckets, Phases
from nemo_magic.report.sweep_table import FINISHED, state_of

_OF_ATTACKS = {"attacks": int, "bins": list, "strategies": list, "self_bleu": Mapping, "pool": str | Mapping}
"""Keys of ``attacks.json`` that every page of a run reads, and what they are."""


class RunFolder:
    """A run, its curves in at most ``points`` points. ``refresh`` reads the rows that were written since, so that a
    running one can be read again and again.

    Raises:
        FileNotFoundError: there is no ``metrics.jsonl``.
        ValueError: one of the run's files is no such file.
    """

    def __init__(self, path: str | Path, points: int = 1000) -> None:
        self.path = Path(path)
        self._points = points
        self.name = self.path.resolve().name
        self._begin()
        self.refresh()

    def _begin(self) -> None:
        self.config = read_config(self.path)
        self.buckets = Buckets(self._points)
        self.phases = Phases(self.config.get("game", {}).get("schedule"))
        self.rows = 0
        self.last: StepRecord | None = None
        self.first_validation: StepRecord | None = None
        self.last_validation: StepRecord | None = None
        self._offset = 0

    def refresh(self) -> None:
        """Read the rows that were written since.

        Raises:
            FileNotFoundError: there is no ``metrics.jsonl``.
            ValueError: a row of it is no step of a run.
        """
        path = self.path / METRICS_FILE
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: {self.path} is no run's folder, or has no step yet")
        if path.stat().st_size < self._offset:  # a run that went back to a checkpoint
            self._begin()
        with path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut short by a kill, or being written
                self._offset += len(line)
                try:
                    self._add(StepRecord.from_row(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(f"{path}: row {self.rows + 1} is no step of a run ({error})") from error

    def _add(self, record: StepRecord) -> None:
        self.rows += 1
        self.last = record
        if record.learner and (entropy := record.metrics.get("train_optim/entropy")) is not None:
            # One curve a role: the two have nothing to do with each other.
            record = replace(record, metrics={**record.metrics, f"entropy/{record.learner}": entropy})
        self.buckets.add(record)
        self.phases.add(record)
        if record.is_validation:
            self.last_validation = record
            self.first_validation = self.first_validation or record

    @property
    def state(self) -> str:
        """``finished``, or how far it has come. Its files do not tell whether it still goes on."""
        if self.last is None:
            return "no steps"
        state = state_of(self.path, self.last.step)
        return state if state == FINISHED else state.removeprefix("stopped ")

    def crossplay(self) -> CrossPlay | None:
        """The cross-play of the run's end; None before."""
        path = self.path / CROSSPLAY_FILE
        if not path.exists():
            return None
        with reading(path):
            return CrossPlay.load(path)

    def league(self) -> Mapping[str, Any] | None:
        """The result of ``nemo-magic cross-play``; None where it was not run."""
        if (league := self._object(LEAGUE_FILE)) is None:
            return None
        with reading(self.path / LEAGUE_FILE):
            asr = league["asr"]
            for name in ("matrix", "low", "high"):
                CrossPlay(league["attackers"], league["defenders"], asr[name])
            estimate = asr["last_defender"]["exploitability"]
            if not all(isinstance(estimate[name], int | float) for name in ("value", "low", "high")):
                raise ValueError("the exploitability is no number")
        return league

    def strategies(self) -> Mapping[str, Mapping[str, Any]] | None:
        """``{"start" | "end": {"worst", "mean", "asr": {strategy: ASR}}}``; None without a strategy sweep."""
        if (sweeps := self._object(STRATEGIES_FILE)) is None:
            return None
        with reading(self.path / STRATEGIES_FILE):
            for sweep in (sweeps["start"], sweeps["end"]):
                shares = (sweep["worst"], sweep["mean"], *sweep["asr"].values())
                if not all(isinstance(share, int | float) for share in shares):
                    raise ValueError("a share is no number")
        return sweeps

    def attacks(self) -> Mapping[str, Any] | None:
        """The analysis of the attacks; None where there is none."""
        if (attacks := self._object(ATTACKS_FILE)) is None:
            return None
        with reading(self.path / ATTACKS_FILE):
            for name, kind in _OF_ATTACKS.items():
                if not isinstance(attacks[name], kind):
                    raise ValueError(f"{name} is {attacks[name]!r}")
            if not all(isinstance(row, Mapping) for row in (*attacks["bins"], *attacks["strategies"])):
                raise ValueError("bins and strategies have to be lists of objects")
        return attacks

    def attack_labels(self) -> Mapping[tuple[int, int, int], str]:
        """(step, group, sample) → the strategy of that conversation, of the conversations that were labelled."""
        rows = self._lines(ATTACK_LABELS_FILE)
        with reading(self.path / ATTACK_LABELS_FILE):
            return {(row["step"], row["group"], row["sample"]): row["strategy"] for row in rows}

    def alarms(self) -> Sequence[Mapping[str, Any]]:
        """The lines of ``alarms.jsonl``; none where no alarm sounded."""
        rows = self._lines(ALARMS_FILE)
        with reading(self.path / ALARMS_FILE):
            for row in rows:
                AlarmEvent(**row)
        return rows

    def _object(self, name: str) -> Mapping[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        with reading(path):
            value = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(value, Mapping):
                raise ValueError("it holds no JSON object")
            return value

    def _lines(self, name: str) -> list[Mapping[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        with reading(path):
            rows = [json.loads(line) for line in whole_lines(path)]
            if not all(isinstance(row, Mapping) for row in rows):
                raise ValueError("a line is no JSON object")
            return rows
