"""Adapters on the meta device, made of Megatron's own parallel layers and put together as NeMo puts them.

NeMo itself takes seconds to import, and its adapters need its own model. What is made here is held against a real
actor's (tests/planner/test_shapes.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)

from nemo_magic.compat.lora import begin_gradients
from nemo_magic.model_config import LoraConfig

_LINEAR = {
    "attention_qkv": ("self_attention", "linear_qkv"),
    "attention_dense": ("self_attention", "linear_proj"),
    "mlp_fc1": ("mlp", "linear_fc1"),
    "mlp_fc2": ("mlp", "linear_fc2"),
}


def adapt(model: GPTModel, lora: LoraConfig) -> None:
    """Freeze ``model`` and add adapters to its layers."""
    model.requires_grad_(False)
    if model.pre_process:
        model.embedding.register_forward_hook(begin_gradients)
    for layer in model.decoder.layers:
        for name in lora.targets:
            part, linear = _LINEAR[name]
            base = getattr(getattr(layer, part), linear)
            adapter = _Adapter(base, lora.adapter_dim, model.config)
            layer.add_module(f"adapter_{name}", adapter)
            base.register_forward_hook(adapter.add)


class _Adapter(torch.nn.Module):
    """``ParallelLinearAdapter`` of NeMo: both factors are cut among tensor-parallel ranks."""

    def __init__(self, base: Any, dim: int, config: Any) -> None:
        super().__init__()
        self.takes_shards = isinstance(base, RowParallelLinear)
        self.splits_sequence = config.sequence_parallel
        own = copy.copy(config)
        own.sequence_parallel = False
        options: dict[str, Any] = {"config": own, "init_method": lambda weight: weight, "bias": False}
        rows, width = base.output_size, base.input_size
        if self.takes_shards:
            self.a = RowParallelLinear(width, dim, input_is_parallel=True, skip_bias_add=True, **options)
        else:
            options_of_a = options | {"disable_grad_reduce": self.splits_sequence}
            self.a = ColumnParallelLinear(width, dim, gather_output=True, **options_of_a)
        self.b = ColumnParallelLinear(dim, rows, gather_output=self.takes_shards, **options)

    def add(self, _: torch.nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, Any]) -> Any:
        """A forward hook of the base's layer."""
        x = args[0]
        if self.splits_sequence and not self.takes_shards:
            x = gather_from_sequence_parallel_region(x)
        x, _bias = self.a(x)
        x, _bias = self.b(x)
        if self.splits_sequence and self.takes_shards:
            x = scatter_to_sequence_parallel_region(x)
        return output[0] + x * 2.0, output[1]
