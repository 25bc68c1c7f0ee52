"""Adapters merged into their base for a while, for engines that know no adapters. Not run on hardware
(docs/hardware.md).

A merged weight is ``W + alpha / adapter_dim · B A``, rounded once to the precision of ``W``: in bf16 about 8 % of small
updates are lost. Subtracting would not give ``W`` back, so the original is kept, in host memory. The base never changes
and may be shared: one copy serves both roles for the whole run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from nemo_magic.compat.lora import adapted_layers

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor

BASE_LAYERS = {
    "lora_kqv_adapter": "linear_qkv",
    "lora_dense_attention_adapter": "linear_proj",
    "lora_hto4h_adapter": "linear_fc1",
    "lora_4htoh_adapter": "linear_fc2",
}
"""NeMo's name of an adapter → the linear layer whose output it adds to."""


class MergedWeights:
    """Merges actors' adapters, and holds the originals of what it has merged once."""

    def __init__(self) -> None:
        self._originals: dict[int, torch.Tensor] = {}

    @contextmanager
    def merged(self, actor: Actor) -> Iterator[None]:
        """Within the context ``actor`` is a model without adapters and with their effect; afterwards bit for bit as
        before. Whoever shares its base must not be used meanwhile. All ranks take part. Nothing happens to an actor
        without adapters.
        """
        if actor.card is None:
            yield
            return
        layers = [layer for module in actor.get_model_module_list() for layer in adapted_layers(module)]
        adapters = [layer.adapter_layer for layer in layers]
        changed: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for layer in layers:
                for weight, update in _updates(layer):
                    changed.append((weight, self._original(weight)))
                    _add(weight, update)
                del layer._modules["adapter_layer"]
            yield
        finally:
            for layer, kept in zip(layers, adapters, strict=True):
                layer._modules["adapter_layer"] = kept
            with torch.no_grad():
                for weight, original in changed:
                    weight.copy_(original, non_blocking=True)
            torch.cuda.synchronize()

    @torch.no_grad()
    def _original(self, weight: torch.Tensor) -> torch.Tensor:
        kept = self._originals.get(weight.data_ptr())
        if kept is None:
            kept = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
            kept.copy_(weight)
            self._originals[weight.data_ptr()] = kept
        return kept


@torch.no_grad()
def _updates(layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(this rank's shard of a base weight, what the adapter adds to it in fp32) of the linear layers of ``layer``."""
    for key, adapter in layer.adapter_layer.items():
        name = getattr(key, "value", key)
        weight = getattr(layer, BASE_LAYERS[name]).weight
        a, b = adapter.linear_in.weight.float(), adapter.linear_out.weight.float()
        # The dimension between A and B is cut in A where the base's rows are, and the base's rows in B where its
        # columns are: each of them is gathered whole.
        a, b = (a, _gathered(b)) if adapter.input_is_parallel else (_gathered(a), b)
        yield weight, adapter.alpha / adapter.dim * (b @ a)


@torch.no_grad()
def _add(weight: torch.Tensor, update: torch.Tensor) -> None:
    weight.copy_(weight.float() + update)


def _gathered(shard: torch.Tensor) -> torch.Tensor:
    """The rows of all tensor-parallel ranks."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return shard
    parts = [torch.empty_like(shard) for _ in range(size)]
    torch.distributed.all_gather(parts, shard.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts)
