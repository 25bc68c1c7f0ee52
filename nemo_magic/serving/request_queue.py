"""Between the thread that speaks HTTP and the one that computes: rows that wait, and the promises made for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from nemo_magic.serving.engine import GenerationRequest, GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer
from nemo_magic.serving.protocol import ApiError

Waiting = tuple[GenerationRequest, "Future[GenerationResult]"]


class RequestQueue:
    """Jobs in the order in which they came. ``max_pending``: rows that may wait or be computed at once."""

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._changed = threading.Condition()
        self._waiting: deque[Waiting] = deque()
        self._pending = 0
        self._problem: str | None = "the model is loading"
        self._words: OffsetTokenizer | None = None
        self._positions = 0

    def open(self, words: OffsetTokenizer, positions: int) -> None:
        """The model is there: ``words`` is the HTTP thread's own tokenizer, ``positions`` what prompt and response may
        be together."""
        self._words, self._positions, self._problem = words, positions, None

    def close(self) -> None:
        """Nothing more is taken; what waits is still computed."""
        with self._changed:
            self._problem = "the server ends"
            self._changed.notify_all()

    def abandon(self, why: str) -> None:
        """Nothing is computed any more: everyone who waits is told so."""
        with self._changed:
            self._problem = why
            lost = list(self._waiting)
            self._waiting.clear()
        for _, promise in lost:
            _break(promise, why)

    def ready(self) -> tuple[OffsetTokenizer, int]:
        """The tokenizer and the positions. Raises ApiError (503) while nothing is taken."""
        if self._problem is not None or self._words is None:
            raise ApiError(503, self._problem or "the model is loading", code="not_ready", soon=True)
        return self._words, self._positions

    def submit(self, jobs: Sequence[GenerationRequest]) -> list[Future[GenerationResult]]:
        """A promise per job. Raises ApiError (503) where there is no room or nothing is taken."""
        with self._changed:
            if self._problem is not None:
                raise ApiError(503, self._problem, code="not_ready", soon=True)
            # What alone is more than all there may be is taken when nothing else is there.
            if self._pending and self._pending + len(jobs) > self._max_pending:
                raise ApiError(503, f"{self._pending} rows wait, serve.max_pending={self._max_pending}", soon=True)
            self._pending += len(jobs)
            promises = [Future[GenerationResult]() for _ in jobs]
            for promise in promises:
                promise.add_done_callback(self._settled)
            self._waiting.extend(zip(jobs, promises, strict=True))
            self._changed.notify_all()
        return promises

    def take(self, most: int, timeout: float) -> list[Waiting]:
        """Up to ``most`` jobs that somebody still waits for; none after ``timeout`` seconds without any."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout)
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        return [waiting for waiting in taken if waiting[1].set_running_or_notify_cancel()]

    def _settled(self, _: Future[GenerationResult]) -> None:
        with self._changed:
            self._pending -= 1


def _break(promise: Future[GenerationResult], why: str) -> None:
    if promise.set_running_or_notify_cancel():
        promise.set_exception(ApiError(503, why, soon=True))
