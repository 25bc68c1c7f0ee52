"""A reference policy that follows the policy: reset to it now and then, or an average of what it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

from nemo_magic.actors.adapters import copy_adapters, is_base

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor

_NAME = "reference."


def keep_reference(actor: Actor, moves: bool = False) -> None:
    """Keep a host copy of the actor's present weights as π_ref; of one that ``moves`` in float32, for the steps of an
    average are smaller than half precision can tell apart.

    Of adapters only they are kept, and nothing where they add nothing to their base yet. This reference does not move.
    """
    actor.keeps_reference = True
    if actor.card is None:
        state = actor.host_state()
        actor.reference_state = {name: _precise(value) if moves else value for name, value in state.items()}
    elif not is_base(actor):
        actor.reference_state = copy_adapters(actor)


def move_reference(actor: Actor, mix: float) -> None:
    """``π_ref ← (1 − mix) π_ref + mix π_θ``, weight by weight. With ``mix`` = 1 it is π_θ exactly."""
    reference = _weights_of(actor)
    for name, value in actor.host_state().items():
        if not torch.is_tensor(value):
            continue
        if mix == 1 or not value.is_floating_point():
            reference[name].copy_(value)
        else:
            reference[name].lerp_(_precise(value), mix)


def sharded_reference(actor: Actor) -> dict[str, Any]:
    """π_ref for a distributed checkpoint: of every weight of the actor the same shard, with the reference's numbers."""
    reference = _weights_of(actor)
    shards = {
        name: replace(shard, data=_tensor(reference, name))
        for name, shard in actor.sharded_state_dict().items()
        if isinstance(shard, ShardedTensor | ShardedTensorFactory)
    }
    state = {
        name: replace(shard, dtype=shard.data.dtype) if isinstance(shard, ShardedTensor) else shard
        for name, shard in shards.items()
    }
    add_prefix_for_sharding(state, _NAME)
    return state


def install_reference(actor: Actor, state: Mapping[str, torch.Tensor]) -> None:
    """Take the π_ref that ``sharded_reference`` described and a checkpoint held."""
    reference = _weights_of(actor)
    for name, value in state.items():
        _tensor(reference, name).copy_(value)


def _weights_of(actor: Actor) -> dict[str, Any]:
    if actor.reference_state is None:
        raise RuntimeError(f"the {actor.role} keeps no reference weights: grpo.kl_beta was 0 when it was built")
    return actor.reference_state


def _tensor(reference: Mapping[str, Any], name: str) -> torch.Tensor:
    """The reference's tensor of the weight that NeMo's sharded state calls ``name``: in half precision the model is
    wrapped, and its state says so."""
    bare = name.removeprefix("model.")
    tensor: torch.Tensor = reference[bare] if bare in reference else reference[f"module.{bare}"]
    return tensor


def _precise(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value
