"""Which of several equal servers to ask next: a pure state machine, without a clock, chance or connections of its own.

A replica is *up*, or *down* since it last failed. Invariants:

- a replica that is up and has no cooldown may be asked; of these, the one with the fewest requests in flight is asked;
- a replica that is down gets one request at a time, and none before its cooldown ends. Where others are up that request
  is a probe, so that no request waits for it; else it is the first request in line;
- a success brings a replica up, whatever failed before; a cooldown that it asked for meanwhile still holds;
- failures of requests that were in flight together are one failure, so that a burst does not make a cooldown longer;
- every request that was acquired ends exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass


@dataclass
class _Replica:
    in_flight: int = 0
    failures: int = 0
    failed_at: float = -math.inf
    cooldown_until: float = -math.inf
    last_request: int = 0


class Replicas:
    """``count`` replicas, all up; ``first`` is the one to begin with. Times are in seconds of any clock."""

    def __init__(self, count: int, first: int = 0) -> None:
        self._all = [_Replica(last_request=(i - first) % count - count) for i in range(count)]
        self._requests = 0

    def pick(self, now: float, besides: Collection[int] = ()) -> int | None:
        """The replica to ask now, none of ``besides``; None if no replica may be asked. Follow it with ``acquire``."""
        up = any(self.is_up(i) for i in range(len(self._all)))
        free = [
            i
            for i, replica in enumerate(self._all)
            if i not in besides and self._may_be_asked(replica, now) and not (up and replica.failures)
        ]
        return min(free, key=self._order, default=None)

    def next_probe(self, now: float) -> int | None:
        """A replica that is down and should be probed now, while others do the work. Follow it with ``acquire``."""
        if not any(self.is_up(i) for i in range(len(self._all))):
            return None
        return next((i for i, r in enumerate(self._all) if r.failures and self._may_be_asked(r, now)), None)

    def acquire(self, i: int) -> None:
        """A request to replica ``i`` is sent."""
        self._requests += 1
        self._all[i].in_flight += 1
        self._all[i].last_request = self._requests

    def succeed(self, i: int) -> None:
        """A request was answered: the replica is up. Raises what ``release`` raises."""
        self.release(i)
        self._all[i].failures = 0

    def fail(self, i: int, now: float, began: float) -> int:
        """A request that began at ``began`` failed; returns how often the replica failed in a row by now.

        Raises what ``release`` raises.
        """
        self.release(i)
        replica = self._all[i]
        if began >= replica.failed_at or not replica.failures:
            replica.failures += 1
            replica.failed_at = now
        return replica.failures

    def cooldown(self, i: int, until: float) -> None:
        """Send nothing to replica ``i`` until then; never shortens a cooldown."""
        self._all[i].cooldown_until = max(self._all[i].cooldown_until, until)

    def release(self, i: int) -> None:
        """A request ended without saying anything about the replica, because its caller is gone.

        Raises ValueError if the replica has no request in flight.
        """
        if not self._all[i].in_flight:
            raise ValueError(f"replica {i} has no request in flight")
        self._all[i].in_flight -= 1

    def next_change(self, now: float) -> float:
        """Seconds until a cooldown ends that alone holds up its replica; infinite where only a request in flight can
        change anything."""
        waits = [
            r.cooldown_until - now for r in self._all if r.cooldown_until > now and not (r.failures and r.in_flight)
        ]
        return min(waits, default=math.inf)

    def is_up(self, i: int) -> bool:
        """Whether replica ``i`` has not failed since it last answered."""
        return not self._all[i].failures

    def in_flight(self, i: int) -> int:
        """Requests to replica ``i`` that have not ended."""
        return self._all[i].in_flight

    def _may_be_asked(self, replica: _Replica, now: float) -> bool:
        return now >= replica.cooldown_until and not (replica.failures and replica.in_flight)

    def _order(self, i: int) -> tuple[int, int]:
        """The least busy, then the one asked longest ago."""
        return self._all[i].in_flight, self._all[i].last_request
