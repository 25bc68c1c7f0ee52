"""Adapters while decoding: at one new token the calls around their two products cost more than the products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from torch.nn.functional import linear

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor


@contextmanager
def plain_adapters(actor: Actor) -> Iterator[None]:
    """Within the context an adapter is ``alpha / adapter_dim · B A x`` and nothing around it. Not while learning, and
    where tensor-parallel ranks share an adapter it stays as it is.
    """
    with ExitStack() as restored:
        if actor.card is not None and parallel_state.get_tensor_model_parallel_world_size() == 1:
            scale = actor.card.alpha / actor.card.adapter_dim
            for module in actor.get_model_module_list():
                for name, layer in module.named_modules():
                    if name.endswith(".adapter_layer"):
                        for adapter in layer.children():
                            a, b = adapter.linear_in.weight, adapter.linear_out.weight
                            adapter.forward = partial(_product, a, b, scale)  # before the class's own
                            restored.callback(delattr, adapter, "forward")
        yield


def _product(a: torch.Tensor, b: torch.Tensor, scale: float, x: torch.Tensor) -> Any:
    return linear(linear(x, a), b) * scale
