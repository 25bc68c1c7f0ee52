"""How far an evaluation is and how long it will take: bars on a terminal, else a plain line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import Self

from nemo_magic.formatting import duration

TOLD_EVERY = 15.0
"""Seconds between two plain lines."""
_REMEMBERED = 20
"""Chunks that the estimate goes by: those that were read back at the beginning say nothing about those to come."""


class EvaluationProgress:
    """Told after each chunk. ``cases``: of each task, in the order in which they are played; ``console`` None: says
    nothing, as on all ranks but one. ``clock`` in seconds."""

    def __init__(
        self, cases: Mapping[str, int], console: Console | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cases, self._console, self._clock = dict(cases), console, clock
        self._before, self._task = 0, ""
        self._seen: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=_REMEMBERED)
        self._told = clock()
        self._bars: Progress | None = None
        if console is not None and console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"), console=console, transient=True, refresh_per_second=2,
            )  # fmt: skip
            self._all = self._bars.add_task("all tasks", total=sum(self._cases.values()), left="")
            self._one = self._bars.add_task("", total=0, left="")

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, task: str) -> None:
        """The next task is played; the one before is done."""
        self._before += self._cases.get(self._task, 0)
        self._task = task
        if self._bars is not None:
            self._bars.update(self._one, description=task, total=self._cases[task], completed=0)

    def advance(self, done: int) -> None:
        """So many cases of the task are played and judged."""
        now, everything = self._clock(), self._before + done
        self._seen.append((now, everything))
        left = self._left()
        if self._bars is not None:
            self._bars.update(self._one, completed=done)
            self._bars.update(self._all, completed=everything, left=left)
        elif self._console is not None and now - self._told >= TOLD_EVERY:
            self._told = now
            of_task, total = self._cases[self._task], sum(self._cases.values())
            print(
                f"{self._task}: {done:,} of {of_task:,} cases; {everything:,} of {total:,} in all, {left}", flush=True
            )

    def _left(self) -> str:
        (since, before), (now, done) = self._seen[0], self._seen[-1]
        missing = sum(self._cases.values()) - done
        if done <= before or now <= since:
            return ""
        return f"about {duration((now - since) / (done - before) * missing)} left"
