"""Which block of which Megatron tensor holds which tensors of Hugging Face.

Megatron's keys are those of its distributed checkpoints, equal for transformer_engine's layers and Megatron's own
(norms have the names that transformer_engine gives them): ``model.decoder.layers.<what>`` is one tensor with the layers
along a leading axis. A ``Block`` is a part of such a tensor that is made of whole Hugging Face tensors.

- ``linear_qkv``: rows are grouped by query group, ``[groups, heads / groups + 2, head size]``: the group's queries,
  then its key, then its value.
- ``linear_fc1``: the gate's rows, then those of the up projection; two blocks, as Megatron itself writes them.
- ``experts.linear_fc1`` and ``linear_fc2`` of a mixture of experts have the experts along a second leading axis.
- The embedding and the output layer have rows of zeros beyond the published vocabulary where NeMo pads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nemo_magic.model_config import ModelConfig

Shape = tuple[int, ...]
EXTRA_STATES = ("self_attention.core_attention", "self_attention.linear_proj", "self_attention.linear_qkv")
"""Modules of a layer whose ``_extra_state`` (fp8 scales; here none) an actor asks for. ``core_attention`` has one in
transformer_engine only."""
QUERY_KEY_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")
"""The same of a layer with these norms, in transformer_engine only."""
_MLP = ("mlp.linear_fc1", "mlp.linear_fc2")
_EXPERTS_NORM = ("pre_mlp_layernorm",)
"""The same of a layer with experts, whose norm has one in transformer_engine only."""
_EACH_EXPERT = ("mlp.experts.experts.linear_fc1", "mlp.experts.experts.linear_fc2")


@dataclass(frozen=True)
class Block:
    """The part of ``shape`` at ``offset`` of the Megatron tensor ``key``, whose shape is ``tensor_shape``.

    ``names`` and ``shapes``: the Hugging Face tensors that it is made of. ``groups`` > 0: queries, keys and values,
    interleaved by group.
    """

    key: str
    tensor_shape: Shape
    offset: Shape
    shape: Shape
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    groups: int = 0

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The block, of ``shape``, from its Hugging Face tensors, of ``shapes``."""
        if self.groups:
            rows = [tensor.view(self.groups, -1, *tensor.shape[1:]) for tensor in tensors]
            return torch.cat(rows, dim=1).view(self.shape)
        (tensor,) = tensors
        if tensor.numel() == torch.Size(self.shape).numel():
            return tensor.view(self.shape)
        padded = tensor.new_zeros(self.shape)
        padded[: len(tensor)] = tensor
        return padded

    def split(self, block: torch.Tensor) -> list[torch.Tensor]:
        """The Hugging Face tensors, of ``shapes``, from the block, of ``shape``; views where that is possible."""
        if self.groups:
            per_group = [shape[0] // self.groups for shape in self.shapes]
            rows = block.view(self.groups, sum(per_group), *self.shapes[0][1:]).split(per_group, dim=1)
            return [part.reshape(shape) for part, shape in zip(rows, self.shapes, strict=True)]
        (shape,) = self.shapes
        if block.numel() == torch.Size(shape).numel():
            return [block.view(shape)]
        return [block[: shape[0]]]


def blocks_of(model: ModelConfig, vocabulary: int, padded: int) -> list[list[Block]]:
    """Every block of ``model``, in the order of Hugging Face's modules: embedding, one list per layer, the rest.

    Args:
        vocabulary: rows of the Hugging Face embedding.
        padded: rows of Megatron's.
    """
    hidden = model.hidden_size
    rows = ((vocabulary, hidden),)
    embedding = _single("model.embedding.word_embeddings.weight", (padded, hidden), "model.embed_tokens.weight", rows)
    last = [_single("model.decoder.final_layernorm.weight", (hidden,), "model.norm.weight", ((hidden,),))]
    if not model.share_embeddings_and_output_weights:
        last.append(_single("model.output_layer.weight", (padded, hidden), "lm_head.weight", rows))
    return [[embedding], *(layer_blocks(model, number) for number in range(model.num_layers)), last]


def extra_state_names(model: ModelConfig) -> list[str]:
    """Names of the (empty) fp8 states, as Megatron-core names objects that layers have: ``key/shard_<i>_<layers>``."""
    layers, experts = model.num_layers, model.num_moe_experts
    norms = QUERY_KEY_NORMS if model.qk_layernorm else ()
    modules = (*EXTRA_STATES, *norms, *(_MLP if experts is None else _EXPERTS_NORM))
    each = [f"{_state(what)}/shard_{i}_{layers}" for i in range(layers) for what in modules]
    each += [
        f"{_state(what)}/shard_{i}.{e}_{layers}.{experts}"
        for i in range(layers)
        for e in range(experts or 0)
        for what in _EACH_EXPERT
    ]
    return [*each, "model.decoder.final_layernorm._extra_state/shard_0_1"]


def _state(module: str) -> str:
    return f"model.decoder.layers.{module}._extra_state"


def _single(key: str, shape: Shape, name: str, shapes: tuple[Shape, ...]) -> Block:
    return Block(key, shape, (0,) * len(shape), shape, (name,), shapes)


def layer_blocks(model: ModelConfig, number: int) -> list[Block]:
    """Every block of layer ``number``."""
    hidden, ffn, heads = model.hidden_size, model.ffn_hidden_size, model.num_attention_heads
    groups = model.num_query_groups or heads
    size = model.kv_channels or hidden // heads
    q, kv = heads * size, groups * size
    here = f"model.layers.{number}"

    def block(what: str, rows: int, names: str | tuple[str, ...], shapes: tuple[Shape, ...], at: int = 0) -> Block:
        tensor_shape = (model.num_layers, rows, *shapes[0][1:])
        names = (names,) if isinstance(names, str) else names
        shape = (1, sum(s[0] for s in shapes), *shapes[0][1:])
        offset = (number, at, *(0 for _ in shapes[0][1:]))
        full = tuple(f"{here}.{name}" for name in names)
        return Block(
            f"model.decoder.layers.{what}", tensor_shape, offset, shape, full, shapes, groups * (len(names) > 1)
        )

    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    blocks = [
        block(
            "self_attention.linear_qkv.weight",
            q + 2 * kv,
            tuple(f"{name}.weight" for name in qkv),
            ((q, hidden), (kv, hidden), (kv, hidden)),
        )
    ]
    if model.qkv_bias:
        biases = tuple(f"{name}.bias" for name in qkv)
        blocks.append(block("self_attention.linear_qkv.bias", q + 2 * kv, biases, ((q,), (kv,), (kv,))))
    if model.qk_layernorm:
        blocks += [
            block(f"self_attention.{one}_layernorm.weight", size, f"self_attn.{one}_norm.weight", ((size,),))
            for one in ("q", "k")
        ]
    experts = model.num_moe_experts
    mlp = [
        block("mlp.linear_fc1.weight", 2 * ffn, "mlp.gate_proj.weight", ((ffn, hidden),)),
        block("mlp.linear_fc1.weight", 2 * ffn, "mlp.up_proj.weight", ((ffn, hidden),), at=ffn),
        block("mlp.linear_fc2.weight", hidden, "mlp.down_proj.weight", ((hidden, ffn),)),
    ]
    if experts is not None:
        mlp = [block("mlp.router.weight", experts, "mlp.gate.weight", ((experts, hidden),))]
        mlp += [part for expert in range(experts) for part in _expert_blocks(model, number, expert)]
    norm = "mlp.linear_fc1.layer_norm_weight" if experts is None else "pre_mlp_layernorm.weight"
    return [
        *blocks,
        block("self_attention.linear_proj.weight", hidden, "self_attn.o_proj.weight", ((hidden, q),)),
        *mlp,
        block("self_attention.linear_qkv.layer_norm_weight", hidden, "input_layernorm.weight", ((hidden,),)),
        block(norm, hidden, "post_attention_layernorm.weight", ((hidden,),)),
    ]


def _expert_blocks(model: ModelConfig, layer: int, expert: int) -> list[Block]:
    hidden, ffn = model.hidden_size, model.expert_ffn_size
    here = f"model.layers.{layer}.mlp.experts.{expert}"

    def block(what: str, rows: int, name: str, shape: Shape, at: int = 0) -> Block:
        tensor_shape = (model.num_layers, model.num_moe_experts or 0, rows, shape[1])
        key = f"model.decoder.layers.mlp.experts.experts.{what}.weight"
        return Block(key, tensor_shape, (layer, expert, at, 0), (1, 1, *shape), (f"{here}.{name}.weight",), (shape,))

    return [
        block("linear_fc1", 2 * ffn, "gate_proj", (ffn, hidden)),
        block("linear_fc1", 2 * ffn, "up_proj", (ffn, hidden), at=ffn),
        block("linear_fc2", hidden, "down_proj", (hidden, ffn)),
    ]
