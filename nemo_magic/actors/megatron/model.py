"""Megatron-core's GPT model from ``ModelConfig``: the same function of the same weights as NeMo's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel import set_defaults_if_not_set_tensor_model_parallel_attributes
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import init_method_normal

from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.megatron.experts import TensorParallelExperts
from nemo_magic.actors.megatron.split_norm import with_split_norms
from nemo_magic.compat.fused_attention import FusedDotProductAttention
from nemo_magic.hf_format.families import padded_rows
from nemo_magic.model_config import ModelConfig

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "geglu": torch.nn.functional.gelu,
    "reglu": torch.nn.functional.relu,
    "swiglu": torch.nn.functional.silu,
    "squared-relu": lambda x: torch.pow(torch.nn.functional.relu(x), 2),
    "approx-gelu": partial(torch.nn.functional.gelu, approximate="tanh"),
}
_NORMALIZATIONS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "layernorm1p": "LayerNorm"}


def build_model(model: ModelConfig, vocabulary: int, precision: str) -> tuple[GPTModel, torch.nn.Module]:
    """This rank's stage with its random weights, and the same in the wrapper of its precision.

    ``vocabulary``: ids of the tokenizer. Raises ModelError where transformer_engine is asked for and not installed.
    """
    config = transformer_config(model, precision)
    bare = GPTModel(
        config,
        with_split_norms(_layer(model), config) if _splits_locally(model, config) else _layer(model),
        vocab_size=padded_rows(model, vocabulary),
        max_sequence_length=model.encoder_seq_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percentage,
        rotary_base=model.rotary_base,
        rope_scaling=model.scale_positional_embedding,
        rope_scaling_factor=model.rope_scaling_factor,
        seq_len_interpolation_factor=model.seq_len_interpolation_factor,
    )
    for parameter in bare.parameters():
        set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    bare.cuda(torch.cuda.current_device())
    return bare, Float16Module(config, bare) if config.bf16 else bare


def transformer_config(model: ModelConfig, precision: str) -> TransformerConfig:
    """``ModelConfig`` in Megatron-core's words. ``precision``: bf16 or 32."""
    activation, dtype = model.activation.removeprefix("fast-"), torch.bfloat16 if precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        sequence_parallel=model.sequence_parallel and model.tensor_model_parallel_size > 1,
        # Microbatches are as wide as their own longest row; pipeline stages tell each other the shapes.
        variable_seq_lengths=model.pipeline_model_parallel_size > 1,
        moe_token_dispatcher_type="alltoall",  # the default one refuses that, also where there are no experts
        num_moe_experts=model.num_moe_experts,
        moe_ffn_hidden_size=model.expert_ffn_size if model.num_moe_experts is not None else None,
        moe_router_topk=model.moe_router_topk,
        moe_router_pre_softmax=model.moe_router_pre_softmax,
        moe_router_load_balancing_type="none",
        deallocate_pipeline_outputs=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=model.use_cpu_initialization,
        init_method=init_method_normal(model.init_method_std),
        init_method_std=model.init_method_std,
        output_layer_init_method=None if model.use_scaled_init_method else init_method_normal(model.init_method_std),
        normalization=_NORMALIZATIONS[model.normalization],
        layernorm_zero_centered_gamma=model.normalization == "layernorm1p",
        layernorm_epsilon=model.layernorm_epsilon,
        add_bias_linear=model.bias,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_layernorm,
        gated_linear_unit=activation.endswith("glu"),
        activation_func=_ACTIVATIONS[activation],
        rotary_interleaved=model.rotary_interleaved,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        attention_softmax_in_fp32=False,
        fp32_residual_connection=model.fp32_residual_connection,
        bias_activation_fusion=model.bias_activation_fusion,
        bias_dropout_fusion=model.bias_dropout_add_fusion,
        masked_softmax_fusion=model.masked_softmax_fusion,
        apply_rope_fusion=model.apply_rope_fusion,
        gradient_accumulation_fusion=model.gradient_accumulation_fusion,
        persist_layer_norm=model.persist_layer_norm,
        recompute_granularity=model.activations_checkpoint_granularity,
        recompute_method=model.activations_checkpoint_method,
        recompute_num_layers=model.activations_checkpoint_num_layers,
    )


def _layer(model: ModelConfig) -> ModuleSpec:
    if not model.transformer_engine:
        spec = get_gpt_layer_local_spec(
            num_experts=model.num_moe_experts,
            qk_layernorm=model.qk_layernorm,
            normalization=_NORMALIZATIONS[model.normalization],
        )
        spec.submodules.self_attention.submodules.core_attention = FusedDotProductAttention
        if model.num_moe_experts is not None:
            spec.submodules.mlp.module = TensorParallelExperts
            # With transformer_engine this norm is a layer of its own, and has its own name.
            del spec.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
        return spec
    if importlib.util.find_spec("transformer_engine") is None:
        raise ModelError("model.transformer_engine=true, and transformer_engine is not installed: set it to false")
    return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_layernorm)


def _splits_locally(model: ModelConfig, config: TransformerConfig) -> bool:
    return bool(config.sequence_parallel) and not model.transformer_engine
