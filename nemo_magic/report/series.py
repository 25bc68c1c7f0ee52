"""A run's metrics in bounded memory, however many steps it had, and its phases with the reason why each ended."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import MetricSwitchConfig, ScheduleConfig
from nemo_magic.report.records import StepRecord


@dataclass(slots=True)
class _Bucket:
    first: int
    last: int
    rows: int = 0
    values: dict[str, tuple[float, int, float, float]] = field(default_factory=dict)
    """Metric → sum, count, lowest, highest."""

    def add(self, other: _Bucket) -> None:
        self.last, self.rows = other.last, self.rows + other.rows
        for name, (total, count, low, high) in other.values.items():
            if name in self.values:
                own = self.values[name]
                self.values[name] = (own[0] + total, own[1] + count, min(own[2], low), max(own[3], high))
            else:
                self.values[name] = (total, count, low, high)


@dataclass(frozen=True)
class Points:
    """A metric over steps: the last step of each bucket that has it, and its mean, lowest and highest there."""

    steps: list[int]
    means: list[float]
    lows: list[float]
    highs: list[float]


class Buckets:
    """Rows in at most ``limit`` buckets of equally many neighbouring rows (the last may be shorter): one row each
    while there are few, then 2, 4, 8 and so on."""

    def __init__(self, limit: int = 1500) -> None:
        self.limit = limit
        self.width = 1
        self._buckets: list[_Bucket] = []

    def add(self, record: StepRecord) -> None:
        """Take in the next step; values that are not finite are left out."""
        finite = {name: (v, 1, v, v) for name, v in record.metrics.items() if math.isfinite(v)}
        new = _Bucket(record.step, record.step, 1, finite)
        if self._buckets and self._buckets[-1].rows < self.width:
            self._buckets[-1].add(new)
            return
        self._buckets.append(new)
        if len(self._buckets) > self.limit:
            for number in range(0, len(self._buckets) - 1, 2):
                self._buckets[number].add(self._buckets[number + 1])
            self._buckets = self._buckets[::2]
            self.width *= 2

    def names(self) -> set[str]:
        """All metrics that any step had."""
        return {name for bucket in self._buckets for name in bucket.values}

    def of(self, name: str) -> Points:
        """A metric over steps; without points where no step had it."""
        buckets = [(bucket.last, bucket.values[name]) for bucket in self._buckets if name in bucket.values]
        return Points(
            [step for step, _ in buckets],
            [total / count for _, (total, count, _, _) in buckets],
            [low for _, (_, _, low, _) in buckets],
            [high for _, (_, _, _, high) in buckets],
        )


@dataclass
class Phase:
    """Steps ``first`` to ``last`` in which ``learner`` learned; ``ended``: why they ended, where that is known."""

    index: int
    learner: str
    first: int
    last: int
    ended: str | None = None


class Phases:
    """The phases of a run, record by record. ``schedule``: its resolved ``game.schedule``, where that is known."""

    def __init__(self, schedule: Mapping[str, Any] | None) -> None:
        self.all: list[Phase] = []
        self._schedule = _schedule(schedule) if schedule else None
        switch = self._schedule.metric if self._schedule else MetricSwitchConfig()
        self._window: deque[float] = deque(maxlen=switch.window)

    def add(self, record: StepRecord) -> None:
        """Take in the next step."""
        if record.learner is None or record.step < 1:
            return
        if not self.all or self.all[-1].index != record.phase_index:
            if self.all:
                self.all[-1].ended = self._why(self.all[-1])
            self.all.append(Phase(record.phase_index, record.learner, record.step, record.step))
            self._window.clear()
        self.all[-1].last = record.step
        if self._schedule is not None and self._schedule.by == "metric":
            value = record.metrics.get(self._schedule.metric.name, math.nan)
            if math.isfinite(value):
                self._window.append(value)

    def _why(self, phase: Phase) -> str | None:
        rounds, schedule = phase.last - phase.first + 1, self._schedule
        if schedule is None:
            return None
        if schedule.by == "steps":
            return f"{rounds} rounds were played (game.schedule.freq × ratio)"
        switch, role = schedule.metric, Role(phase.learner)
        if not switch.reached(role, tuple(self._window)):
            return f"{rounds} rounds without success (game.schedule.metric.max_steps)"
        bound = f"≤ {switch.low:g}" if role is Role.DEFENDER else f"≥ {switch.high:g}"
        return f"mean of the last {switch.window} {switch.name} was {mean(self._window):.3g}, {bound}"


def _schedule(saved: Mapping[str, Any]) -> ScheduleConfig | None:
    try:
        return ScheduleConfig(**{**saved, "metric": MetricSwitchConfig(**saved.get("metric", {}))})
    except (TypeError, ValueError):
        return None  # a run of another version, whose schedule had other keys: its phases are known, their ends are not
