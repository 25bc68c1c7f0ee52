"""Pre-emption: signals of a scheduler, and the time a run may take."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent import futures
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_magic.actors.rank_group import RankGroup
from nemo_magic.runtime.errors import Preempted

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

SAVE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What a scheduler sends, to some or all processes of a run, to have it save and end."""

PATIENCE = 5.0
"""Seconds that a server still has to answer in once a signal came: Slurm kills 30 s after its SIGTERM."""

_POLL = 0.2
"""Seconds between looks at whether another rank was asked to end."""


class Preemption:
    """Within its context SIGTERM and SIGUSR1 are remembered instead of obeyed; ``reason`` tells between steps, and
    ``wait`` ends where a server does not answer.

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

    def wait(
        self,
        submit: Callable[[], futures.Future[T]],
        is_away: Callable[[], bool],
        error: Callable[[str], Exception],
    ) -> T | None:
        """The result of what ``submit`` begins, on the source ranks; None on the others. All ranks take part.

        Args:
            submit: asks a server; called on the source ranks only, as is ``is_away``.
            is_away: whether the server is known not to answer.
            error: makes the exception that every rank raises where a source rank fails.

        Raises:
            Preempted: on every rank, where a signal came to any and an answer is missing ``PATIENCE`` seconds later:
                whatever the server does after SIGTERM, which comes shortly before the end, and where it is away after
                SIGUSR1, which comes in good time. What is missing is cancelled.
            Exception: what ``error`` makes, on every rank.
        """
        future: futures.Future[T] = futures.Future()
        failure: Exception | None = None
        done = not self._ranks.is_source
        try:
            if not done:
                future = submit()
        except Exception as caught:  # a rank that raised alone would leave its peers waiting
            failure = caught
        number, since = 0, 0.0
        while True:
            if not done and failure is None and futures.wait([future], timeout=_POLL).done:
                done, failure = True, _exception(future)
            message = None if failure is None else f"{type(failure).__name__}: {failure}"
            ends = number > 0 and not done and self._clock() >= since + PATIENCE
            ends = ends and (number == signal.SIGTERM or is_away())
            states = self._ranks.all_gather((message, done, self._received or 0, ends))
            if messages := [text for text, *_ in states if text]:
                future.cancel()
                raise error(messages[0]) from failure
            if all(done for _, done, _, _ in states):
                return future.result() if self._ranks.is_source else None
            if any(ends for *_, ends in states):
                future.cancel()
                raise Preempted(f"{signal.Signals(number).name} received while a server did not answer")
            if received := max(received for _, _, received, _ in states):  # SIGTERM rather than SIGUSR1
                since = since if number else self._clock()
                number = received

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


def _exception(future: futures.Future[Any]) -> Exception | None:
    """Why a future that is done has no result."""
    try:
        future.result()
    except Exception as error:  # CancelledError is one too
        return error
    return None
