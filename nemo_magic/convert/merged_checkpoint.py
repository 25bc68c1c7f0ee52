"""Adapters merged into their base, read like a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.convert.torch_dist import Checkpoint
from nemo_magic.hf_format.adapters import TARGETS, adapter_blocks, peft_tensors, rows_of
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.mapping import Block
from nemo_magic.model_config import ModelConfig


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
        b = self.adapters.read(rows_of(block, target.b, dim)).view(-1, dim).float()
        return (weight.float() + (self.card.alpha / dim * (b @ a)).view(weight.shape)).to(weight.dtype)

    def peft_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """PEFT's name and tensor, of all adapters."""
        return peft_tensors(self.model, self.card.targets, self.card.adapter_dim, self.adapters.read)
