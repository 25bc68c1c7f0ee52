"""Low-rank adapters on Megatron-core's linear layers: the function, the names and the layout of NeMo's.

A forward hook adds ``alpha / adapter_dim · B A x`` to what a linear layer gives. The adapters of an attention or an MLP
are its submodule ``adapter_layer``, as NeMo has them, so a checkpoint of either backend is one of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import init_method_normal

from nemo_magic.compat.lora import begin_gradients, sharded_adapters
from nemo_magic.model_config import LoraConfig

_PLACES = {
    "attention_qkv": ("self_attention", "lora_kqv_adapter", "linear_qkv"),
    "attention_dense": ("self_attention", "lora_dense_attention_adapter", "linear_proj"),
    "mlp_fc1": ("mlp", "lora_hto4h_adapter", "linear_fc1"),
    "mlp_fc2": ("mlp", "lora_4htoh_adapter", "linear_fc2"),
}
"""NeMo's name of a target → the part of a layer, its adapter's name, and the linear layer that it adds to."""

_INITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "xavier": torch.nn.init.xavier_normal_,
    "normal": init_method_normal(0.2),
    "kaiming": lambda weight: torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5)),
}


class LowRank(torch.nn.Module):
    """``alpha / adapter_dim · B A x`` beside ``linear``, whose parallelism it has: input and output are cut as those of
    ``linear`` are."""

    def __init__(self, linear: Any, lora: LoraConfig, config: TransformerConfig) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"config": config, "bias": False}
        begin, dim = _INITS[lora.column_init_method], lora.adapter_dim
        input_is_parallel = isinstance(linear, RowParallelLinear)
        if input_is_parallel:
            self.linear_in: torch.nn.Module = RowParallelLinear(
                linear.input_size, dim, init_method=begin, input_is_parallel=True, skip_bias_add=True, **sizes
            )
        else:
            self.linear_in = ColumnParallelLinear(
                linear.input_size, dim, init_method=begin, gather_output=True, **sizes
            )
        self.linear_out = ColumnParallelLinear(
            dim, linear.output_size, init_method=torch.nn.init.zeros_, gather_output=input_is_parallel, **sizes
        )
        self.dropout = torch.nn.Dropout(lora.adapter_dropout)
        self.scale, self.is_enabled = lora.alpha / dim, True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., input] → [..., output]."""
        result: torch.Tensor = self.dropout(self.linear_out(self.linear_in(x)[0])[0]) * self.scale
        return result

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Megatron-core's description of this rank's share."""
        state: dict[str, Any] = {}
        for name in ("linear_in", "linear_out"):
            part: Any = getattr(self, name)
            state |= part.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        return state


def add_low_rank(module: GPTModel, lora: LoraConfig) -> None:
    """Freeze the weights of ``module`` and add adapters, which begin as nothing."""
    module.requires_grad_(False)
    if module.pre_process:
        # Recomputing a layer needs an input that has a gradient.
        module.embedding.register_forward_hook(begin_gradients)
    for layer in module.decoder.layers:
        parts: dict[str, dict[str, LowRank]] = {}
        for target in lora.targets:
            place, name, linear_name = _PLACES[target]
            linear = getattr(getattr(layer, place), linear_name)
            adapter = LowRank(linear, lora, module.config).to(linear.weight.dtype).cuda(torch.cuda.current_device())
            linear.register_forward_hook(_adding(adapter))
            parts.setdefault(place, {})[name] = adapter
        for place, adapters in parts.items():
            getattr(layer, place).adapter_layer = sharded_adapters(adapters, module.config.gated_linear_unit)


@contextmanager
def without_low_rank(module: GPTModel) -> Iterator[None]:
    """Within the context adapters do nothing."""
    adapters = [part for part in module.modules() if isinstance(part, LowRank)]
    for adapter in adapters:
        adapter.is_enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_enabled = True


def _adding(adapter: LowRank) -> Callable[..., Any]:
    def add(_: torch.nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (output[0] + adapter(args[0]), *output[1:]) if adapter.is_enabled else None

    return add
