"""What NeMo 2.1 leaves out of a Megatron-core model: norms of queries and keys, and rotary scaling by another factor.

- It asks Megatron-core for layers without ``qk_layernorm``, whatever the configuration says.
- It never sums the gradients of these norms over tensor-parallel ranks, unless the sequence is parallel too. Each rank
  norms heads of its own with one weight; Megatron-core's own trainer sums them.
- Its ``scale_positional_embedding`` knows the factor of Llama-3.1 alone, 8.
"""

from __future__ import annotations

from typing import Any

import torch

LLAMA31_FACTOR = 8.0


def complete(model: torch.nn.Module, cfg: Any) -> None:
    """Give ``model``, a GPTModel as NeMo built it by ``cfg`` (NeMo's keys), what it lacks."""
    if cfg.get("qk_layernorm", False):
        add_query_key_norms(model, cfg.transformer_engine)
    factor = cfg.get("rope_scaling_factor", LLAMA31_FACTOR)
    if cfg.get("scale_positional_embedding", False) and factor != LLAMA31_FACTOR:
        rotary: Any = model.rotary_pos_emb
        size = 2 * len(rotary.inv_freq)
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=rotary.inv_freq.device)
        rotary.inv_freq = scale_frequencies(1.0 / (cfg.rotary_base ** (steps / size)), factor)


def scale_frequencies(frequencies: torch.Tensor, factor: float) -> torch.Tensor:
    """Llama-3's scaling of rotary frequencies [size / 2]: waves longer than 8,192 tokens become ``factor`` times as
    long, those shorter than 2,048 stay, and between them it is interpolated.

    Source: transformers' ``_compute_llama3_parameters``, with the constants of Llama-3.1, 3.2 and 3.3.
    """
    low, high, context = 1.0, 4.0, 8192
    waves = context * frequencies / (2 * torch.pi)
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def add_query_key_norms(model: torch.nn.Module, transformer_engine: bool) -> None:
    """Put Megatron-core's norms of queries and keys into every layer. Their gradients become sums over tensor-parallel
    ranks."""
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.transformer.spec_utils import build_module

    local, fused = gpt_layer_specs.get_gpt_layer_local_spec, gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec
    spec = (fused if transformer_engine else local)(qk_layernorm=True).submodules.self_attention.submodules
    decoder: Any = model.decoder
    for layer in decoder.layers:
        attention = layer.self_attention
        for name in ("q_layernorm", "k_layernorm"):
            norm = build_module(
                getattr(spec, name),
                hidden_size=attention.hidden_size_per_attention_head,
                config=attention.config,
                eps=attention.config.layernorm_epsilon,
            )
            setattr(attention, name, norm)
            if not attention.config.sequence_parallel:  # NeMo sums those
                for parameter in norm.parameters():
                    parameter.register_hook(_sum_over_tensor_parallel)


def _sum_over_tensor_parallel(gradient: torch.Tensor) -> torch.Tensor:
    from megatron.core import parallel_state

    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return gradient
    total = gradient.clone()
    torch.distributed.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
    return total
