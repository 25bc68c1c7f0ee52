"""Pre-emption: signals of a scheduler, and the time a run may take."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from nemo_magic.actors.rank_group import RankGroup

if TYPE_CHECKING:
    from typing_extensions import Self

SAVE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What a scheduler sends, to some or all processes of a run, to have it save and end."""


class Preemption:
    """Within its context SIGTERM and SIGUSR1 are remembered instead of obeyed; ``reason`` tells between steps.

    ``max_seconds``: the time the run may take from the construction on, or None. A step that has begun is finished, so
    leave room for one step and a checkpoint.
    """

    def __init__(
        self, ranks: RankGroup, max_seconds: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ranks = ranks
        self._clock = clock
        self._deadline = None if max_seconds is None else clock() + max_seconds
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def reason(self) -> str | None:
        """Why the run should end now, the same on every rank; all ranks take part."""
        own = 0 if self._received is None else int(self._received)
        if self._deadline is not None and self._clock() >= self._deadline:
            own = own or -1
        first = next((value for value in self._ranks.all_gather(own) if value), 0)
        if first > 0:
            return f"{signal.Signals(first).name} received"
        return "exp_manager.max_time_per_run is over" if first else None

    def __enter__(self) -> Self:
        for number in SAVE_SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
