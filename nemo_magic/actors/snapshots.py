"""Past selves of an actor: kept on disk, worn for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_aligner.utils.utils import retrieve_model_state_dict_in_cpu, swap_dict

from nemo_magic.actors.checkpoint import load_weights, save_weights

if TYPE_CHECKING:
    from nemo_magic.actors.actor import MagicActor


@dataclass(frozen=True)
class Snapshot:
    """An actor's weights as they once were, in a folder that any TP × PP can read."""

    name: str
    folder: Path


def take(actor: MagicActor, folder: Path) -> Snapshot:
    """Save the actor's present weights to ``folder``; the snapshot has the folder's name."""
    save_weights(actor, folder)
    return Snapshot(folder.name, folder)


@contextmanager
def worn(actor: MagicActor, snapshot: Snapshot) -> Iterator[None]:
    """Within the context the actor has the snapshot's weights; afterwards its own again. Generators notice both."""
    own = retrieve_model_state_dict_in_cpu(actor, megatron_amp_O2=actor.megatron_amp_O2)
    load_weights(actor, snapshot.folder)
    try:
        yield
    finally:
        swap_dict(actor, own, offload_onto_cpu=False, megatron_amp_O2=actor.megatron_amp_O2)
        actor.weights_version += 1
