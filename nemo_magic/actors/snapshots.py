"""Snapshots of an actor's weights: saved, and used for a while in the place of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache

from nemo_magic.actors.adapters import copy_adapters, put_adapters
from nemo_magic.actors.weights import load_weights, save_weights

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.actors.trainable import TrainablePolicy


@dataclass(frozen=True)
class Snapshot:
    """An actor's weights as they once were, in a folder that any TP × PP can read."""

    name: str
    folder: Path


def save_snapshot(actor: Actor, folder: Path) -> Snapshot:
    """Save the actor's present weights to ``folder``; the snapshot has the folder's name."""
    save_weights(actor, folder)
    return Snapshot(folder.name, folder)


class SnapshotCache:
    """Lets actors use snapshots, and keeps ``max_bytes`` of those that were used in this rank's host memory; the least
    recently used goes first. Without ``max_bytes`` every use loads from disk."""

    def __init__(self, max_bytes: float = 0) -> None:
        self._max_bytes = max_bytes
        self._states: LRUCache[Path, Mapping[str, Any]] = LRUCache(max_bytes, getsizeof=_size)

    def evict(self, snapshot: Snapshot) -> None:
        """The folder holds, or is about to hold, other weights or none."""
        self._states.pop(snapshot.folder, None)

    @contextmanager
    def use_snapshot(self, policy: TrainablePolicy | None, folder: Path | None) -> Iterator[None]:
        """Within the context ``policy`` has the weights of the snapshot in ``folder``; afterwards its own. Generators
        notice both.

        Without a folder nothing changes, and the policy may be None: a server may play the role.
        """
        if folder is None:
            yield
            return
        assert policy is not None, f"{folder} is of a role that a server plays"
        actor = policy.actor
        own = copy_state(actor)
        self._load(actor, folder)
        try:
            yield
        finally:
            _put(actor, own)

    def _load(self, actor: Actor, folder: Path) -> None:
        state = self._states.get(folder)
        if state is not None:
            _put(actor, state)
            return
        load_weights(actor, folder)
        if self._max_bytes > 0:
            with suppress(ValueError):  # larger than the whole cache
                self._states[folder] = copy_state(actor)


def copy_state(actor: Actor) -> Mapping[str, Any]:
    """What learning changes, as it is: all weights in host memory, or the adapters where they are."""
    if actor.card is not None:
        return copy_adapters(actor)
    return actor.host_state()


def _put(actor: Actor, state: Mapping[str, Any]) -> None:
    if actor.card is not None:
        put_adapters(actor, state)
    else:
        actor.put_host_state(state)
    actor.weights_version += 1


def _size(state: Any) -> int:
    if torch.is_tensor(state):
        return int(state.numel() * state.element_size())
    return sum(map(_size, state.values())) if isinstance(state, Mapping) else 0
