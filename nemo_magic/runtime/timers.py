"""Seconds and peak memory per part of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

GIB = float(1 << 30)


class Gauge(Protocol):
    """Measures the highest memory use since it began last."""

    def begin(self) -> None:
        """Start to measure."""

    def peak(self) -> float:
        """Bytes since ``begin``."""


class Timers:
    """Seconds spent per name within a step: ``with timers("update"): ...``; a name may be timed more than once.

    With a ``gauge`` also the peak memory of each part; a part that contains others has the highest of theirs.
    """

    def __init__(self, gauge: Gauge | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._gauge = gauge
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._open: list[str] = []
        self.moves = 0
        """How often a part has begun or ended; it grows as long as the rank makes progress."""

    @property
    def where(self) -> str:
        """The part under way, within those that contain it; "between steps" outside of all."""
        return "/".join(self._open) or "between steps"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the context's seconds under ``name``."""
        started = self._clock()
        self._gauged()
        self._open.append(name)
        self.moves += 1
        try:
            yield
        finally:
            self._gauged()
            self._open.pop()
            self.moves += 1
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def seconds(self, name: str) -> float:
        """Seconds collected under ``name`` since the last drain; 0 when it never ran."""
        return self._seconds.get(name, 0.0)

    def drain(self) -> dict[str, float]:
        """``{"timers/<name>": seconds, "memory/<name>_gib": peak}`` since the last drain, and start over."""
        drained = {f"timers/{name}": seconds for name, seconds in self._seconds.items()}
        drained |= {f"memory/{name}_gib": peak / GIB for name, peak in self._peaks.items()}
        self._seconds.clear()
        self._peaks.clear()
        return drained

    def _gauged(self) -> None:
        """Credit what was used until now to all parts that are open, and begin anew."""
        if self._gauge is not None:
            peak = self._gauge.peak()
            for name in self._open:
                self._peaks[name] = max(self._peaks.get(name, 0.0), peak)
            self._gauge.begin()
