"""Past selves of an actor, kept in host memory and worn for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_aligner.utils.utils import cpu_weight_swap, retrieve_model_state_dict_in_cpu

if TYPE_CHECKING:
    from nemo_magic.actors.actor import MagicActor


@dataclass(frozen=True)
class Snapshot:
    """A copy of an actor's weights: this rank's shard."""

    name: str
    weights: dict[str, Any]


def take(actor: MagicActor, name: str) -> Snapshot:
    """Copy the actor's present weights to host memory."""
    return Snapshot(name, retrieve_model_state_dict_in_cpu(actor, megatron_amp_O2=actor.megatron_amp_O2))


@contextmanager
def worn(actor: MagicActor, snapshot: Snapshot) -> Iterator[None]:
    """Within the context the actor has the snapshot's weights; afterwards its own again. Generators notice both."""
    with cpu_weight_swap(actor, dict(snapshot.weights), megatron_amp_O2=actor.megatron_amp_O2):
        actor.weights_version += 1
        yield
    actor.weights_version += 1
