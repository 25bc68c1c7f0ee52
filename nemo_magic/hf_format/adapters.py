"""Which Megatron tensors of adapters hold which tensors of Hugging Face's PEFT.

An adapter adds ``alpha / dim · B A x`` to the output of a linear layer. Megatron has queries, keys and values in one
layer, and gate and up projection in another, each with one A; PEFT has a layer of its own for each. So PEFT's adapters
repeat the A, and share out the rows of B as those of the weight are (``mapping``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.mapping import Block, layer_blocks
from nemo_magic.model_config import ModelConfig

PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
_LAYERS, _HF = "model.decoder.layers", "base_model.model.model.layers"


@dataclass(frozen=True)
class Target:
    """A linear layer: NeMo's name of it, of its adapter and of its weight, and Hugging Face's modules."""

    name: str
    adapter: str
    weight: str
    modules: tuple[str, ...]

    @property
    def a(self) -> str:
        """The key of A."""
        return f"{_LAYERS}.{self.adapter}.linear_in.weight"

    @property
    def b(self) -> str:
        """The key of B."""
        return f"{_LAYERS}.{self.adapter}.linear_out.weight"

    @property
    def weight_key(self) -> str:
        """The key of the weight in the base."""
        return f"{_LAYERS}.{self.weight}"

    def names(self, layer: int, factor: str) -> list[str]:
        """PEFT's names of ``lora_A`` or ``lora_B`` in a layer, one per module."""
        return [f"{_HF}.{layer}.{module}.{factor}.weight" for module in self.modules]


TARGETS = (
    Target(
        "attention_qkv", "self_attention.adapter_layer.lora_kqv_adapter", "self_attention.linear_qkv.weight",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ),
    Target(
        "attention_dense", "self_attention.adapter_layer.lora_dense_attention_adapter",
        "self_attention.linear_proj.weight", ("self_attn.o_proj",),
    ),
    Target(
        "mlp_fc1", "mlp.adapter_layer.lora_hto4h_adapter", "mlp.linear_fc1.weight", ("mlp.gate_proj", "mlp.up_proj")
    ),
    Target("mlp_fc2", "mlp.adapter_layer.lora_4htoh_adapter", "mlp.linear_fc2.weight", ("mlp.down_proj",)),
)  # fmt: skip


@dataclass(frozen=True)
class AdapterBlocks:
    """The blocks of one linear layer's adapter: ``a`` [1, dim, in] and, of one or two weight blocks, ``b``
    [1, rows, dim]. The names of ``b`` are the Hugging Face modules' in order."""

    target: Target
    a: Block
    b: tuple[Block, ...]


def adapter_blocks(model: ModelConfig, targets: Sequence[str], dim: int, layer: int) -> list[AdapterBlocks]:
    """Every adapter of ``layer``. Raises ConvertError for those on an MLP where there are experts in its place."""
    weights = layer_blocks(model, layer)
    adapters = []
    for target in TARGETS:
        if target.name not in targets:
            continue
        mine = [block for block in weights if block.key == target.weight_key]
        if not mine:
            raise ConvertError(f"adapters on {target.name}: the base has experts there, and no adapters fit them")
        width = mine[0].tensor_shape[2]
        size, name = (1, dim, width), target.names(layer, "lora_A")[0]
        a = Block(target.a, (model.num_layers, dim, width), (layer, 0, 0), size, (name,), ((dim, width),))
        adapters.append(AdapterBlocks(target, a, tuple(rows_of(block, target.b, dim) for block in mine)))
    return adapters


def rows_of(weight: Block, key: str, dim: int) -> Block:
    """The block of B that adds to a block of the weight."""
    return replace(
        weight,
        key=key,
        tensor_shape=(*weight.tensor_shape[:2], dim),
        shape=(*weight.shape[:2], dim),
        names=tuple(f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight" for name in weight.names),
        shapes=tuple((shape[0], dim) for shape in weight.shapes),
    )


def peft_tensors(
    model: ModelConfig, targets: Sequence[str], dim: int, read: Callable[[Block], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """PEFT's name and tensor, of all adapters; ``read`` gives a block of them."""
    for layer in range(model.num_layers):
        for one in adapter_blocks(model, targets, dim, layer):
            a = read(one.a).view(one.a.shapes[0])
            for name in one.target.names(layer, "lora_A"):
                yield name, a.clone()
            for block in one.b:
                for name, tensor in zip(block.names, block.split(read(block)), strict=True):
                    yield name, tensor.contiguous()


def peft_config(targets: Sequence[str], dim: int, alpha: float, base: str) -> dict[str, Any]:
    """``PEFT_CONFIG`` of adapters on ``base``, the name or path of a published model."""
    modules = [module.rpartition(".")[2] for one in TARGETS if one.name in targets for module in one.modules]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": dim,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
