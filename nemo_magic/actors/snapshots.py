"""Past selves of an actor: kept on disk, played with for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nemo_aligner.utils.utils import retrieve_model_state_dict_in_cpu, swap_dict

from nemo_magic.actors.recent import Recent
from nemo_magic.actors.weights import load_weights, save_weights

if TYPE_CHECKING:
    from nemo_magic.actors.actor import MagicActor


@dataclass(frozen=True)
class Snapshot:
    """An actor's weights as they once were, in a folder that any TP × PP can read."""

    name: str
    folder: Path


def save_snapshot(actor: MagicActor, folder: Path) -> Snapshot:
    """Save the actor's present weights to ``folder``; the snapshot has the folder's name."""
    save_weights(actor, folder)
    return Snapshot(folder.name, folder)


class SnapshotCache:
    """Snapshots that stay in this rank's host memory after they were used, ``max_bytes`` of them at most; who was not
    used for longest goes first."""

    def __init__(self, max_bytes: float = 0) -> None:
        self._max_bytes = max_bytes
        self._kept: Recent[Path, Mapping[str, Any]] = Recent(max_bytes)

    def evict(self, snapshot: Snapshot) -> None:
        """The folder holds, or is about to hold, other weights or none."""
        self._kept.forget(snapshot.folder)

    @contextmanager
    def use_snapshot(self, actor: MagicActor, snapshot: Snapshot) -> Iterator[None]:
        """Within the context the actor has the snapshot's weights; afterwards its own. Generators notice both."""
        own = retrieve_model_state_dict_in_cpu(actor, megatron_amp_O2=actor.megatron_amp_O2)
        kept = self._kept.get(snapshot.folder)
        if kept is None:
            load_weights(actor, snapshot.folder)
            self._keep(actor, snapshot.folder)
        else:
            _put(actor, kept)
        try:
            yield
        finally:
            _put(actor, own)

    def _keep(self, actor: MagicActor, folder: Path) -> None:
        if self._max_bytes > 0:
            state = retrieve_model_state_dict_in_cpu(actor, megatron_amp_O2=actor.megatron_amp_O2)
            self._kept.keep(folder, state, _size(state))


@contextmanager
def use_snapshot(actor: MagicActor, snapshot: Snapshot) -> Iterator[None]:
    """Within the context the actor has the snapshot's weights, from disk; afterwards its own again."""
    with SnapshotCache().use_snapshot(actor, snapshot):
        yield


def _put(actor: MagicActor, state: Mapping[str, Any]) -> None:
    swap_dict(actor, state, offload_onto_cpu=False, megatron_amp_O2=actor.megatron_amp_O2)
    actor.weights_version += 1


def _size(state: Any) -> int:
    if torch.is_tensor(state):
        return int(state.numel() * state.element_size())
    return sum(map(_size, state.values())) if isinstance(state, Mapping) else 0
