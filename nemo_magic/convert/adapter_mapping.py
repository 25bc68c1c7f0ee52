"""Which Megatron tensors of adapters hold which tensors of Hugging Face's PEFT, and adapters merged into their base.

An adapter adds ``alpha / dim · B A x`` to the output of a linear layer. Megatron has queries, keys and values in one
layer, and gate and up projection in another, each with one A; PEFT has a layer of its own for each. So PEFT's adapters
repeat the A, and share out the rows of B as those of the weight are (``mapping``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.convert.errors import ConvertError
from nemo_magic.convert.mapping import Block, layer_blocks
from nemo_magic.convert.torch_dist import Checkpoint
from nemo_magic.model_config import ModelConfig

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
        adapters.append(AdapterBlocks(target, a, tuple(_rows_of(block, target.b, dim) for block in mine)))
    return adapters


def _rows_of(weight: Block, key: str, dim: int) -> Block:
    """The block of B that adds to a block of the weight."""
    return replace(
        weight,
        key=key,
        tensor_shape=(*weight.tensor_shape[:2], dim),
        shape=(*weight.shape[:2], dim),
        names=tuple(f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight" for name in weight.names),
        shapes=tuple((shape[0], dim) for shape in weight.shapes),
    )


class MergedCheckpoint:
    """A base with adapters merged into it, read a block at a time like a ``Checkpoint``.

    Raises:
        ConvertError: the adapters lack tensors, or have them in other shapes.
    """

    def __init__(self, base: Checkpoint, adapters: Checkpoint, card: AdapterCard, model: ModelConfig) -> None:
        self.base, self.adapters, self.card, self.model = base, adapters, card, model
        self._by_weight = {target.weight_key: target for target in TARGETS if target.name in card.targets}
        expected = {
            block.key: block.tensor_shape
            for one in adapter_blocks(model, card.targets, card.adapter_dim, 0)
            for block in (one.a, *one.b)
        }
        stored = {key: tuple(value.size) for key, value in adapters.tensors.items()}
        if stored != expected:
            differing = sorted(key for key in stored.keys() | expected.keys() if stored.get(key) != expected.get(key))
            key = differing[0]
            raise ConvertError(
                f"{adapters.folder}: {key} has shape {stored.get(key)}, and by the card and the model it would be "
                f"{expected.get(key)} ({len(differing)} such tensors)"
            )

    @property
    def folder(self) -> Path:
        """Of the adapters."""
        return self.adapters.folder

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Of the base."""
        return self.base.tensors

    def read(self, block: Block) -> torch.Tensor:
        """A block of the base, with what its adapter adds, rounded once."""
        weight, target = self.base.read(block), self._by_weight.get(block.key)
        if target is None:
            return weight
        dim, layer = self.card.adapter_dim, block.offset[0]
        (one,) = adapter_blocks(self.model, [target.name], dim, layer)
        a = self.adapters.read(one.a).view(dim, -1).float()
        b = self.adapters.read(_rows_of(block, target.b, dim)).view(-1, dim).float()
        return (weight.float() + (self.card.alpha / dim * (b @ a)).view(weight.shape)).to(weight.dtype)

    def peft_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """PEFT's name and tensor, of all adapters."""
        for layer in range(self.model.num_layers):
            for one in adapter_blocks(self.model, self.card.targets, self.card.adapter_dim, layer):
                a = self.adapters.read(one.a).view(one.a.shapes[0])
                for name in one.target.names(layer, "lora_A"):
                    yield name, a.clone()
                for block in one.b:
                    for name, tensor in zip(block.names, block.split(self.adapters.read(block)), strict=True):
                        yield name, tensor.contiguous()
