"""An actor's present weights under Hugging Face's names, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import apply_factories

from nemo_magic.hf_format.adapters import peft_tensors
from nemo_magic.hf_format.families import padded_rows
from nemo_magic.hf_format.mapping import Block, blocks_of

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor

_EMBEDDING = "model.embedding.word_embeddings.weight"


class LiveWeights:
    """What the ranks of a model-parallel group hold together of an actor's tensors, by the names and offsets of
    Megatron's checkpoints. No rank has more than one block at a time that is not its own."""

    def __init__(self, actor: Actor) -> None:
        (module,) = actor.get_model_module_list()
        state = module.sharded_state_dict(prefix="model.")
        apply_factories(state)
        self._actor = actor
        self._shards: dict[str, list[ShardedTensor]] = {}
        for shard in _sharded_tensors(state):
            # One rank brings what several have: norms at all tensor-parallel ranks, tied embeddings at both ends.
            if not any(_of_model_parallel(shard.replica_id)):
                self._shards.setdefault(shard.key, []).append(shard)
        first = next(module.parameters())
        self._dtype, self._device = first.dtype, first.device
        self._group = parallel_state.get_model_parallel_group()

    @torch.no_grad()
    def read(self, block: Block) -> torch.Tensor:
        """The whole of ``block``, on every rank of the model-parallel group; all of them call."""
        alone = torch.distributed.get_world_size(self._group) == 1
        whole = torch.zeros(block.shape, dtype=self._dtype, device=self._device)
        for shard in self._shards.get(block.key, ()):
            data = shard.data.reshape((1,) * shard.prepend_axis_num + tuple(shard.data.shape))
            common = [
                (max(at, start), min(at + size, start + length))
                for at, size, start, length in zip(
                    shard.global_offset, data.shape, block.offset, block.shape, strict=True
                )
            ]
            if all(low < high for low, high in common):
                source = tuple(slice(a - at, b - at) for (a, b), at in zip(common, shard.global_offset, strict=True))
                target = tuple(slice(a - at, b - at) for (a, b), at in zip(common, block.offset, strict=True))
                if alone and data[source].shape == whole.shape:
                    return data[source]
                whole[target] = data[source]
        if not alone:
            torch.distributed.all_reduce(whole, group=self._group)  # a sum of one number and zeros
        return whole

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the model, adapters aside. The output head is there by itself, though it may be tied."""
        model = self._actor.cfg
        rows = padded_rows(model, self._actor.chat.size)
        for blocks in blocks_of(model, rows, rows):
            for block in blocks:
                for name, tensor in zip(block.names, block.split(self.read(block)), strict=True):
                    yield name, tensor
                    if block.key == _EMBEDDING and model.share_embeddings_and_output_weights:
                        yield "lm_head.weight", tensor

    def adapters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the adapters, under PEFT's names."""
        card = self._actor.card
        assert card is not None
        return peft_tensors(self._actor.cfg, card.targets, card.adapter_dim, self.read)


def _of_model_parallel(replica: Any) -> tuple[Any, ...]:
    """A replica's number without its last part, that of the data-parallel rank."""
    return tuple(replica)[:-1] if isinstance(replica, tuple) else (replica,)


def _sharded_tensors(state: Any) -> Iterator[ShardedTensor]:
    if isinstance(state, ShardedTensor):
        yield state
    elif isinstance(state, dict):
        for part in state.values():
            yield from _sharded_tensors(part)
    elif isinstance(state, list | tuple):
        for part in state:
            yield from _sharded_tensors(part)
