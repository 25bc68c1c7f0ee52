"""Which of several equal servers to ask next: a pure state machine, without a clock, chance or connections of its own.

A replica is *up*, or *down* since it last failed. What is held at any time:

- a replica that is up and not resting may be asked; of these the one with the fewest requests under way is;
- one that is down is asked by one request at a time, and by none before its rest is over: by a probe where others are
  up, so that it costs nobody's time, else by whoever comes first;
- a success brings a replica up, whatever failed before; a rest that it asked for meanwhile it gets all the same;
- failures of requests that were under way together are one failure, so that a burst does not make a rest longer;
- every request that began ends exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass


@dataclass
class _Replica:
    under_way: int = 0
    failures: int = 0
    failed_at: float = -math.inf
    rest_until: float = -math.inf
    last_asked: int = 0


class Replicas:
    """``count`` replicas, all up; ``first`` is the one to begin with. Times are in seconds of any clock."""

    def __init__(self, count: int, first: int = 0) -> None:
        self._all = [_Replica(last_asked=(i - first) % count - count) for i in range(count)]
        self._asked = 0

    def pick(self, now: float, besides: Collection[int] = ()) -> int | None:
        """The replica to ask now, none of ``besides``; None if all have to be left alone. Follow it with ``begin``."""
        up = any(self.is_up(i) for i in range(len(self._all)))
        free = [
            i
            for i, replica in enumerate(self._all)
            if i not in besides and self._may_be_asked(replica, now) and not (up and replica.failures)
        ]
        return min(free, key=self._order, default=None)

    def due(self, now: float) -> int | None:
        """A replica that is down and should be probed now, while others do the work. Follow it with ``begin``."""
        if not any(self.is_up(i) for i in range(len(self._all))):
            return None
        return next((i for i, r in enumerate(self._all) if r.failures and self._may_be_asked(r, now)), None)

    def begin(self, i: int) -> None:
        """A request to replica ``i`` is sent."""
        self._asked += 1
        self._all[i].under_way += 1
        self._all[i].last_asked = self._asked

    def succeed(self, i: int) -> None:
        """A request was answered: the replica is up."""
        self.withdraw(i)
        self._all[i].failures = 0

    def fail(self, i: int, now: float, began: float) -> int:
        """A request that began at ``began`` came to nothing; returns how often the replica failed in a row by now."""
        self.withdraw(i)
        replica = self._all[i]
        if began >= replica.failed_at or not replica.failures:
            replica.failures += 1
            replica.failed_at = now
        return replica.failures

    def rest(self, i: int, until: float) -> None:
        """Leave replica ``i`` alone until then; never shortens a rest."""
        self._all[i].rest_until = max(self._all[i].rest_until, until)

    def withdraw(self, i: int) -> None:
        """A request ended without saying anything about the replica, because nobody waits for it any more."""
        if not self._all[i].under_way:
            raise ValueError(f"replica {i} has no request under way")
        self._all[i].under_way -= 1

    def next_change(self, now: float) -> float:
        """Seconds until a rest ends that nothing else holds up; infinite where only a request under way can tell."""
        resting = [r.rest_until - now for r in self._all if r.rest_until > now and not (r.failures and r.under_way)]
        return min(resting, default=math.inf)

    def is_up(self, i: int) -> bool:
        return not self._all[i].failures

    def under_way(self, i: int) -> int:
        return self._all[i].under_way

    def _may_be_asked(self, replica: _Replica, now: float) -> bool:
        return now >= replica.rest_until and not (replica.failures and replica.under_way)

    def _order(self, i: int) -> tuple[int, int]:
        """The least busy, then the one asked longest ago."""
        return self._all[i].under_way, self._all[i].last_asked
