"""Values that stay at hand as long as there is room, those used last before others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most ``room`` together; who was not used for longest goes first, and what alone is too large is not kept."""

    def __init__(self, room: float) -> None:
        self._room = room
        self._kept: OrderedDict[K, tuple[V, float]] = OrderedDict()

    @property
    def size(self) -> float:
        """Of all that is kept."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: K) -> V | None:
        """The value, which was used with that; None if it is not there."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: K, value: V, size: float) -> None:
        """Keep a value if it fits, in the place of others if need be."""
        self.forget(key)
        if size > self._room:
            return
        while self.size + size > self._room:
            self._kept.popitem(last=False)
        self._kept[key] = value, size

    def forget(self, key: K) -> None:
        self._kept.pop(key, None)
