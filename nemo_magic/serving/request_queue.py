"""Requests on their way from the HTTP thread to the one that computes, each with the future of its result."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from nemo_magic.serving.engine import GenerationRequest, GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer
from nemo_magic.serving.protocol import ApiError

PendingRequest = tuple[GenerationRequest, "Future[GenerationResult]"]


class RequestQueue:
    """A first-in first-out queue. ``max_pending``: requests that may wait or be computed at once."""

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._changed = threading.Condition()
        self._waiting: deque[PendingRequest] = deque()
        self._pending = 0
        self._problem: str | None = "the model is loading"
        self._tokenizer: OffsetTokenizer | None = None
        self._positions = 0

    def open(self, tokenizer: OffsetTokenizer, positions: int) -> None:
        """Accept requests: the model is loaded.

        ``tokenizer``: the HTTP thread's own; ``positions``: tokens that prompt and response may have together.
        """
        self._tokenizer, self._positions, self._problem = tokenizer, positions, None

    def close(self) -> None:
        """Accept no more requests; those that wait are still computed."""
        with self._changed:
            self._problem = "the server ends"
            self._changed.notify_all()

    def abandon(self, reason: str) -> None:
        """Compute nothing more: requests that wait fail with ``reason``."""
        with self._changed:
            self._problem = reason
            waiting = list(self._waiting)
            self._waiting.clear()
        for _, future in waiting:
            _fail(future, reason)

    def ready(self) -> tuple[OffsetTokenizer, int]:
        """The tokenizer and the positions. Raises ApiError (503) while no request is accepted."""
        if self._problem is not None or self._tokenizer is None:
            raise ApiError(503, self._problem or "the model is loading", code="not_ready", soon=True)
        return self._tokenizer, self._positions

    def submit(self, requests: Sequence[GenerationRequest]) -> list[Future[GenerationResult]]:
        """A future per request. Raises ApiError (503) if too many wait or no request is accepted."""
        with self._changed:
            if self._problem is not None:
                raise ApiError(503, self._problem, code="not_ready", soon=True)
            # Requests that alone exceed the limit are accepted when nothing else is pending.
            if self._pending and self._pending + len(requests) > self._max_pending:
                raise ApiError(503, f"{self._pending} rows wait, serve.max_pending={self._max_pending}", soon=True)
            self._pending += len(requests)
            futures = [Future[GenerationResult]() for _ in requests]
            for future in futures:
                future.add_done_callback(self._count_done)
            self._waiting.extend(zip(requests, futures, strict=True))
            self._changed.notify_all()
        return futures

    def take(self, limit: int, timeout: float) -> list[PendingRequest]:
        """Up to ``limit`` requests that somebody still waits for; none after ``timeout`` seconds without any."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout)
            batch = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        return [pending for pending in batch if pending[1].set_running_or_notify_cancel()]

    def _count_done(self, _: Future[GenerationResult]) -> None:
        with self._changed:
            self._pending -= 1


def _fail(future: Future[GenerationResult], reason: str) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(ApiError(503, reason, soon=True))
