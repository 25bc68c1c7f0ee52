"""The norm of local layers whose sequence is split over tensor-parallel ranks. Megatron-core's own refuses that."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig


class SplitNorm:
    """torch's norm, with weights that are marked: each rank has the gradient of its own positions, and Megatron-core
    sums those (``finalize_model_grads``)."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, **options: Any) -> torch.nn.Module:  # type: ignore[misc]
        """As Megatron-core builds a norm."""
        whole = copy.copy(config)
        whole.sequence_parallel = False
        norm: torch.nn.Module = WrappedTorchNorm(whole, hidden_size, **options)
        for parameter in norm.parameters():
            parameter.sequence_parallel = True  # type: ignore[attr-defined]
        return norm


def with_split_norms(layer: ModuleSpec, config: TransformerConfig) -> TransformerBlockSubmodules:
    """This stage's local layers and final norm, for sequences that are split. Norms of queries and keys see whole ones
    of their heads; Megatron-core sums their gradients anyway."""
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = SplitNorm
    attention = parts.self_attention.submodules
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = SplitNorm
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=SplitNorm)
