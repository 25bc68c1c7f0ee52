"""How far an evaluation is and how long it will take: bars on a terminal, else a plain line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import Self

from nemo_magic.formatting import duration

PRINT_EVERY = 15.0
"""Seconds between two plain lines."""
_WINDOW = 20
"""Chunks that the estimate is made from: those that the caches answered at the beginning say nothing of the rest."""


class EvaluationProgress:
    """Shows progress after each chunk. ``examples``: their number of each task, in the order in which tasks are played.
    ``console`` None: shows nothing, as on all ranks but one. ``clock`` in seconds."""

    def __init__(
        self, examples: Mapping[str, int], console: Console | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._examples, self._console, self._clock = dict(examples), console, clock
        self._before, self._task = 0, ""
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=_WINDOW)
        self._last_print = clock()
        self._bars: Progress | None = None
        if console is not None and console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"), console=console, transient=True, refresh_per_second=2,
            )  # fmt: skip
            self._all = self._bars.add_task("all tasks", total=sum(self._examples.values()), left="")
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
        self._before += self._examples.get(self._task, 0)
        self._task = task
        if self._bars is not None:
            self._bars.update(self._one, description=task, total=self._examples[task], completed=0)

    def advance(self, done: int) -> None:
        """So many examples of the task are played and judged."""
        now, total_done = self._clock(), self._before + done
        self._samples.append((now, total_done))
        remaining = self._remaining()
        if self._bars is not None:
            self._bars.update(self._one, completed=done)
            self._bars.update(self._all, completed=total_done, left=remaining)
        elif self._console is not None and now - self._last_print >= PRINT_EVERY:
            self._last_print = now
            of_task, total = self._examples[self._task], sum(self._examples.values())
            print(
                f"{self._task}: {done:,} of {of_task:,} cases; {total_done:,} of {total:,} in all, {remaining}",
                flush=True,
            )

    def _remaining(self) -> str:
        (since, before), (now, done) = self._samples[0], self._samples[-1]
        missing = sum(self._examples.values()) - done
        if done <= before or now <= since:
            return ""
        return f"about {duration((now - since) / (done - before) * missing)} left"
