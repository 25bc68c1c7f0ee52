"""Parameters, saved activations and FLOPs of a rank of a layout, measured on Megatron-core itself.

Layers, embedding and head are built and run on the meta device (``compat.meta``), forward and backward, at the layout's
tensor parallelism. No formula for a transformer's parameters is written here.

Two modules stand in for fused kernels and save what these save: a norm of transformer_engine its input and one number
per token; attention (transformer_engine's, and torch's on the CPU lane) its queries, keys, values and output and one
number per token and head, and it computes the half of the scores that a causal mask leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils.flop_counter import FlopCounterMode

from nemo_magic.compat.meta import META, rank_of
from nemo_magic.model_config import LoraConfig, ModelConfig, PeftConfig
from nemo_magic.planner.adapter_shapes import adapt

_ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,
    "geglu": torch.nn.functional.gelu,
    "reglu": torch.nn.functional.relu,
    "swiglu": torch.nn.functional.silu,
    "squared-relu": lambda x: torch.pow(torch.nn.functional.relu(x), 2),
    "approx-gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Part:
    """A piece of a model on one rank, for one microbatch.

    ``parameters``: number on the rank, of which ``trainable`` learn. ``kept``: bytes that the forward pass saves for
    the backward pass, without weights. ``recomputed``: further bytes while one checkpointed chunk is recomputed.
    ``forward``, ``backward``: FLOPs; recomputation counts as backward.
    """

    parameters: int
    kept: int
    recomputed: int
    forward: float
    backward: float
    trainable: int = 0

    def times(self, rows: float) -> Part:
        """The same for ``rows`` times as many rows, with as many parameters."""
        scaled = {name: getattr(self, name) * rows for name in ("kept", "recomputed", "forward", "backward")}
        return replace(self, **scaled)


@dataclass(frozen=True)
class Shapes:
    """A model's shards.

    ``layer``: one transformer layer. ``first``: the embedding, before the layers of the first stage; ``last``: norm and
    head, after those of the last; of a single stage both are in ``last``. ``shared``: bytes that all layers of a stage
    save together. ``logits``: elements of a microbatch's logits on one rank; ``hidden``: bytes of its hidden state, of
    the whole sequence.
    """

    layers: int
    pp: int
    layer: Part
    first: Part
    last: Part
    shared: int
    logits: int
    hidden: int

    @property
    def layers_of_stage(self) -> int:
        """Layers of a pipeline stage."""
        return self.layers // self.pp

    def times(self, rows: float) -> Shapes:
        """The same for microbatches of ``rows`` times as many rows."""
        each = {name: getattr(self, name).times(rows) for name in ("layer", "first", "last")}
        return replace(self, **each, logits=int(self.logits * rows), hidden=int(self.hidden * rows))

    def parameters(self, stage: int) -> int:
        """Parameters on a rank of pipeline stage ``stage``."""
        ends = (self.first.parameters if stage == 0 else 0) + (self.last.parameters if stage == self.pp - 1 else 0)
        return self.layers_of_stage * self.layer.parameters + ends

    def kept(self, stage: int) -> int:
        """Bytes that a rank of ``stage`` saves of a microbatch between its forward and its backward pass."""
        ends = (self.first.kept if stage == 0 else 0) + (self.last.kept if stage == self.pp - 1 else 0)
        return self.layers_of_stage * self.layer.kept + self.shared + ends

    def trainable(self, stage: int) -> int:
        """Those of ``parameters`` that learn: all, or the adapters."""
        ends = (self.first.trainable if stage == 0 else 0) + (self.last.trainable if stage == self.pp - 1 else 0)
        return self.layers_of_stage * self.layer.trainable + ends

    @property
    def rank_parameters(self) -> int:
        """Parameters of all stages together: one tensor-parallel shard of the model."""
        return sum(self.parameters(stage) for stage in range(self.pp))

    @property
    def rank_trainable(self) -> int:
        """Those of ``rank_parameters`` that learn."""
        return sum(self.trainable(stage) for stage in range(self.pp))


def total_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Parameters of the whole model with its padded vocabulary, built on one rank."""
    return _total(_architecture(_not_recomputed(model)), vocab_size)


def measure(
    model: ModelConfig, vocab_size: int, tp: int, pp: int, rows: int, tokens: int, dtype: torch.dtype = torch.bfloat16
) -> Shapes:
    """Build a rank's part of ``model`` and run it on microbatches of ``rows`` × ``tokens``.

    ``tokens`` is rounded up to a multiple of ``tp`` where the model's sequences are split (``sequence_parallel``).
    ``vocab_size``: the tokenizer's, before padding.
    """
    split = tp if model.sequence_parallel else 1
    tokens = -(-tokens // split) * split
    chunk = _chunk(model)
    recomputed, whole = _architecture(model), _architecture(_not_recomputed(model))

    def run(architecture: _Architecture, count: int, pre: bool = False, post: bool = False) -> Part:
        return _run(architecture, vocab_size, tp, count, pre, post, rows, tokens, dtype)

    def ends(pre: bool, post: bool) -> Part:
        """What a stage with these ends has beyond its layers."""
        stage, bare = run(whole, 1, pre, post), run(whole, 1)
        return Part(
            stage.parameters - bare.parameters,
            stage.kept - bare.kept,
            0,
            stage.forward - bare.forward,
            stage.backward - bare.backward,
            stage.trainable - bare.trainable,
        )

    # Bytes that all layers share (rotary angles, masks) are in one layer and in two layers once.
    layers, twice = run(recomputed, chunk), run(recomputed, 2 * chunk)
    kept = twice.kept - layers.kept
    layer = Part(
        layers.parameters // chunk,
        kept // chunk,
        run(whole, 2 * chunk).kept - run(whole, chunk).kept - kept,
        layers.forward / chunk,
        layers.backward / chunk,
        layers.trainable // chunk,
    )
    first, last = (Part(0, 0, 0, 0.0, 0.0), ends(True, True)) if pp == 1 else (ends(True, False), ends(False, True))
    logits = rows * tokens * (padded(vocab_size, model) // tp)
    hidden = rows * tokens * model.hidden_size * dtype.itemsize
    return Shapes(model.num_layers, pp, layer, first, last, layers.kept - kept, logits, hidden)


_Architecture = tuple[tuple[str, Any], ...]
"""The keys of a model that its parts depend on, hashable: a search asks for the same part of many layouts."""


def _architecture(model: ModelConfig) -> _Architecture:
    no_part = {
        "tokenizer", "optim", "peft", "micro_batch_size", "global_batch_size", "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
    }  # fmt: skip
    own = tuple(sorted((key, value) for key, value in vars(model).items() if key not in no_part))
    lora = model.peft.lora_tuning
    return (*own, ("adapters", (lora.targets, lora.adapter_dim))) if model.peft.is_lora else own


def _model_of(architecture: _Architecture) -> ModelConfig:
    keys = dict(architecture)
    targets, dim = keys.pop("adapters", ((), 0))
    lora = LoraConfig(target_modules=list(targets), adapter_dim=dim) if targets else LoraConfig()
    return ModelConfig(**keys, peft=PeftConfig("lora" if targets else "none", None, lora))


def _not_recomputed(model: ModelConfig) -> ModelConfig:
    return replace(
        model,
        activations_checkpoint_granularity=None,
        activations_checkpoint_method=None,
        activations_checkpoint_num_layers=None,
    )


@lru_cache(maxsize=64)
def _total(architecture: _Architecture, vocab_size: int) -> int:
    model = _model_of(architecture)
    with rank_of(1, 1):
        return _count(_build(model, vocab_size, 1, 1, model.num_layers, True, True, torch.float32))


def padded(vocab_size: int, model: ModelConfig) -> int:
    """Rows of the embedding: ``vocab_size`` padded as NeMo pads it."""
    multiple = model.make_vocab_size_divisible_by
    return -(-vocab_size // multiple) * multiple


def _chunk(model: ModelConfig) -> int:
    """Layers that are recomputed together."""
    if model.activations_checkpoint_granularity == "full" and model.activations_checkpoint_method == "uniform":
        return model.activations_checkpoint_num_layers or 1
    return 1


def _build(
    model: ModelConfig, vocab_size: int, tp: int, pp: int, layers: int, pre: bool, post: bool, dtype: torch.dtype
) -> GPTModel:  # fmt: skip
    """``layers`` of a stage, built by Megatron-core as NeMo configures it."""
    name = model.activation.removeprefix("fast-")
    config = TransformerConfig(
        num_layers=layers * pp,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        sequence_parallel=model.sequence_parallel and tp > 1,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=True,
        perform_initialization=False,
        normalization="RMSNorm" if model.normalization == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=model.layernorm_epsilon,
        add_bias_linear=model.bias,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_layernorm,
        gated_linear_unit=name.endswith("glu"),
        activation_func=_ACTIVATIONS[name],
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        apply_query_key_layer_scaling=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        recompute_granularity=model.activations_checkpoint_granularity,
        recompute_method=model.activations_checkpoint_method,
        recompute_num_layers=model.activations_checkpoint_num_layers,
    )
    spec = get_gpt_layer_local_spec(qk_layernorm=model.qk_layernorm)
    spec.submodules.self_attention.submodules.core_attention = _FlashAttention
    if model.transformer_engine:
        parts = spec.submodules
        if model.qk_layernorm:
            parts.self_attention.submodules.q_layernorm = parts.self_attention.submodules.k_layernorm = _Norm
        parts.input_layernorm = parts.pre_mlp_layernorm = _Norm
    with META, _final_norm(model.transformer_engine):
        built = GPTModel(
            config,
            spec,
            vocab_size=padded(vocab_size, model),
            max_sequence_length=model.encoder_seq_length,
            pre_process=pre,
            post_process=post,
            parallel_output=True,
            share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
            position_embedding_type=model.position_embedding_type,
            rotary_percent=model.rotary_percentage,
            rotary_base=model.rotary_base,
        )
    if model.peft.is_lora:
        with META:
            adapt(built, model.peft.lora_tuning)
    return built.to(dtype)


@contextmanager
def _final_norm(transformer_engine: bool) -> Iterator[None]:
    """Replaces the norm after the last layer, which is not part of a layer's specification."""
    from megatron.core.transformer import transformer_block

    if not transformer_engine:
        yield
        return
    original = transformer_block.LayerNormImpl
    transformer_block.LayerNormImpl = _Norm
    try:
        yield
    finally:
        transformer_block.LayerNormImpl = original


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache(maxsize=4096)
def _run(
    architecture: _Architecture, vocab_size: int, tp: int, layers: int, pre: bool, post: bool, rows: int, tokens: int,
    dtype: torch.dtype,
) -> Part:  # fmt: skip
    """One forward and one backward pass of ``layers`` layers with the given ends, on shapes."""
    config = _model_of(architecture)
    stages = 1 if pre == post else 2
    with rank_of(tp, stages, stages - 1 if post else 0):
        return _passes(_build(config, vocab_size, tp, stages, layers, pre, post, dtype), rows, tokens)


def _passes(model: GPTModel, rows: int, tokens: int) -> Part:
    config = model.config
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    if not model.pre_process:
        split = config.tensor_model_parallel_size if config.sequence_parallel else 1
        size = (tokens // split, rows, config.hidden_size)
        model.set_input_tensor(torch.empty(size, dtype=config.params_dtype, device=META, requires_grad=True))
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=META)
    positions = torch.arange(tokens, device=META).expand(rows, tokens)
    with FlopCounterMode(display=False) as forward, torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        output = model(ids, positions, None)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = float(forward.get_total_flops()), float(backward.get_total_flops())
    return Part(_count(model), sum(saved.values()), 0, *flops, learning)


# --- stand-ins for transformer_engine's kernels


class _Norm(torch.nn.Module):
    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        if config.normalization == "LayerNorm":
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _NormFunction.apply(x, self.weight)
        return result


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _FlashAttention(torch.nn.Module):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        result: torch.Tensor = _FlashFunction.apply(q, k, v)
        return result


class _FlashFunction(torch.autograd.Function):
    """q [s, b, heads, d] → [s, b, heads · d]."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        s, b, heads, d = q.shape
        out = q.new_empty(s, b, heads * d)
        ctx.save_for_backward(q, k, v, out, q.new_empty(b, heads, s, dtype=torch.float32))
        _count_products(q, products=2)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        _count_products(q, products=5)  # the scores once more, and the gradients of both products
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _count_products(q: torch.Tensor, products: int) -> None:
    """Run ``products`` matrix products [s, d] × [d, s / 2] per row and head, for the FLOP counter."""
    s, b, heads, d = q.shape
    each = q.new_empty(b * heads, s, d)
    for _ in range(products):
        torch.bmm(each, each.new_empty(b * heads, d, -(-s // 2)))
