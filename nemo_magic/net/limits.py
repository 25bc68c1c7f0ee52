"""Rate limits: ceilings of requests and tokens a minute.

``Limiter`` is a pure state machine, without a clock or sleep of its own. Invariants:

- requests are sent at an even pace, so that no minute has more than ``requests_per_minute`` of them;
- in no minute are more than ``tokens_per_minute`` tokens sent or reserved. A request reserves what it may take at most,
  until the server says what it took; one that alone is larger than the ceiling is sent into a minute of its own.

A minute is counted as a second more than that, as requests do not all travel equally fast.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from nemo_magic.config_checks import CheckedConfig, PositiveFloat

MINUTE = 61.0


@dataclass
class RateLimit(CheckedConfig):
    """Ceilings of one endpoint, all its replicas and all that ask it from here taken together; null: none.

    Each try counts as a request. Tokens are those of prompt and response: until the server tells (``usage``), a third
    of the prompt's bytes and the longest response asked for. How many requests are under way at once is
    ``max_concurrency``. What the server itself refuses with 429 waits for its Retry-After in any case.
    """

    KEY: ClassVar[str] = "rate_limit"

    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None

    def shared(self, clients: int) -> RateLimit:
        """The part of one of ``clients`` that ask equally much."""
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        return RateLimit(None if requests is None else requests / clients, None if tokens is None else tokens / clients)


def likely_tokens(body: bytes, max_tokens: int) -> int:
    """What a request may take at most, in tokens, as far as is known without the model's tokenizer."""
    return len(body) // 3 + max_tokens


@dataclass
class Reservation:
    """A request that was sent at ``at`` (seconds) and takes, or may take, ``tokens``."""

    at: float
    tokens: float


class Limiter:
    """Holds a RateLimit. Times are in seconds of any clock. Call ``send`` only when ``pause`` is 0."""

    def __init__(self, limit: RateLimit) -> None:
        self._pace = MINUTE / limit.requests_per_minute if limit.requests_per_minute else 0.0
        self._ceiling = limit.tokens_per_minute
        self._free_at = 0.0
        self._sent: deque[Reservation] = deque()

    @property
    def limits(self) -> bool:
        """Whether there is any ceiling."""
        return self._pace > 0 or self._ceiling is not None

    def pause(self, now: float, tokens: float) -> float:
        """Seconds to wait before a request of ``tokens`` may be sent, as far as is known now."""
        pause = max(0.0, self._free_at - now)
        if self._ceiling is None:
            return pause
        while self._sent and self._sent[0].at <= now - MINUTE:
            self._sent.popleft()
        over = sum(reservation.tokens for reservation in self._sent) + tokens - self._ceiling
        for reservation in self._sent:
            if over <= 0:
                break
            over -= reservation.tokens
            pause = max(pause, reservation.at + MINUTE - now)
        return pause

    def send(self, now: float, tokens: float) -> Reservation:
        """Record that a request of ``tokens`` is sent; set ``tokens`` of what is returned once they are known."""
        self._free_at = now + self._pace
        reservation = Reservation(now, tokens)
        if self._ceiling is not None:
            self._sent.append(reservation)
        return reservation
