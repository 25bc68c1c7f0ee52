"""Seconds spent per part of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Timers:
    """Seconds spent per name within a step: ``with timers("update"): ...``; a name may be timed more than once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def seconds(self, name: str) -> float:
        """Seconds collected under ``name`` since the last drain; 0 when it never ran."""
        return self._seconds.get(name, 0.0)

    def drain(self) -> dict[str, float]:
        """``{"timers/<name>": seconds}`` since the last drain, and start over."""
        drained = {f"timers/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return drained
