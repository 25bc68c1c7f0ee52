"""A role that is LoRA adapters on frozen weights, as ``model.peft`` configures them.

Learning changes the adapters and nothing else. So what is saved, kept as a snapshot, or swapped is the adapters, and
two roles can stand on one base in memory (``share_base``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_magic.actors.adapter_card import AdapterCard, base_digest
from nemo_magic.actors.distributed import World

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.model_config import ModelConfig

_MARK = ".adapter_layer."


def card_of_base(path: str, model: ModelConfig) -> AdapterCard:
    """Of adapters on the weights at ``path``, which rank 0 reads. All ranks take part."""
    world = World.current()
    digest = world.broadcast_from_main(base_digest(Path(path)) if world.is_main else "")
    return AdapterCard.of(str(Path(path).absolute()), digest, model.peft.lora_tuning)


def share_base(actor: Actor, other: Actor) -> None:
    """Let ``actor``, which has no adapters yet, stand on the weights of ``other``; its own are freed.

    Both have to be of one architecture and layout.
    """
    theirs = {name: parameter for name, parameter in _named_parameters(other) if not is_adapter(name)}
    for name, parameter in _named_parameters(actor):
        parameter.data = theirs.pop(name).data
    assert not theirs, f"the {actor.role} lacks {sorted(theirs)[:3]} of the {other.role}'s base"


def is_adapter(name: str) -> bool:
    """Whether a tensor with this name in a model belongs to an adapter; not the (empty) fp8 states of its layers."""
    return _MARK in name and not name.endswith("_extra_state")


def adapter_parameters(actor: Actor) -> dict[str, torch.nn.Parameter]:
    """Name → this rank's shard, of all adapters."""
    return {name: parameter for name, parameter in _named_parameters(actor) if is_adapter(name)}


def copy_adapters(actor: Actor) -> dict[str, torch.Tensor]:
    """The adapters as they are, on the device where they are."""
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(actor).items()}


@torch.no_grad()
def put_adapters(actor: Actor, state: Mapping[str, torch.Tensor]) -> None:
    """Let the adapters be what ``copy_adapters`` gave."""
    for name, parameter in adapter_parameters(actor).items():
        parameter.copy_(state[name])


def is_base(actor: Actor) -> bool:
    """Whether the adapters add nothing: every ``B`` is zero, on all ranks. All ranks take part."""
    differing = [
        parameter.any() for name, parameter in adapter_parameters(actor).items() if name.endswith("linear_out.weight")
    ]
    moved = torch.stack(differing).any().int()
    torch.distributed.all_reduce(moved, torch.distributed.ReduceOp.MAX)
    return not int(moved)


@contextmanager
def using_adapters(actor: Actor, state: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """Within the context the adapters are those of ``state``, or do nothing; afterwards they are as before."""
    if state is None:
        with actor.without_adapters():
            yield
        return
    own = copy_adapters(actor)
    put_adapters(actor, state)
    try:
        yield
    finally:
        put_adapters(actor, own)


def _named_parameters(actor: Actor) -> Iterator[tuple[str, Any]]:
    for module in actor.get_model_module_list():
        yield from module.named_parameters()
