"""Megatron-core's ``torch_dist`` checkpoints, written and read a block at a time, without Megatron and without a world.

The format is torch.distributed.checkpoint's, with ``common.pt`` (empty: weights are all there is) and ``metadata.json``
beside it. Torch's own writer and reader do the work, with planners for what to write and read. Megatron itself is not
imported: a build for GPUs may fail to import without one.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_magic.compat.restricted_pickle import UnsafeWeightsError, only_weights
from nemo_magic.fsync_io import sync_file, write_durably
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.mapping import Block

METADATA, COMMON, INDEX = "metadata.json", "common.pt", ".metadata"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
_DAMAGE = (OSError, EOFError, RuntimeError, pickle.UnpicklingError, AttributeError, LookupError, TypeError, ValueError)
_COMMON_FORMAT = {"common_backend": "torch", "common_backend_version": 1}


def write(
    folder: Path,
    files: Sequence[Sequence[Block]],
    objects: Sequence[str],
    dtype: torch.dtype,
    tensor_of: Callable[[Block], torch.Tensor],
    file_written: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a checkpoint into the empty ``folder``, durably; ``metadata.json``, which makes it one, comes last.

    Args:
        files: the blocks of each file.
        objects: names of objects that are None.
        dtype: of all tensors.
        tensor_of: called once for each block; its tensors are freed once their file is written.
        file_written: called after each file with the number of files written so far.
    """
    planner = _Planner(files, objects, dtype, tensor_of)
    writer = FileSystemWriter(folder)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = planner.create_global_plan(planner.local_plans)
    # A plan is a rank's share for torch, and so becomes a file of its own.
    results = []
    for number, plan in enumerate(writer.prepare_global_plan(plans), 1):
        results.append(writer.write_data(plan, planner).wait())
        file_written(number)
    writer.finish(metadata, results)
    sync_file(folder / INDEX)
    torch.save({}, folder / COMMON)
    sync_file(folder / COMMON)
    write_durably(folder / METADATA, json.dumps(_FORMAT | _COMMON_FORMAT))


class _Planner(SavePlanner):
    """Plans one file for each list of blocks, and makes each tensor when the writer asks for it."""

    def __init__(
        self,
        files: Sequence[Sequence[Block]],
        objects: Sequence[str],
        dtype: torch.dtype,
        tensor_of: Callable[[Block], torch.Tensor],
    ) -> None:
        self._tensor_of = tensor_of
        self._dtype = dtype
        self._blocks: dict[tuple[str, tuple[int, ...]], Block] = {}
        none = io.BytesIO()
        torch.save([None], none)
        self._none = none.getvalue()
        items = [[self._item(block) for block in blocks] for blocks in files]
        items[-1] += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in objects]
        self.local_plans = [SavePlan(each) for each in items]

    def _item(self, block: Block) -> WriteItem:
        self._blocks[block.key, block.offset] = block
        chunk = ChunkStorageMetadata(torch.Size(block.offset), torch.Size(block.shape))
        data = TensorWriteData(chunk, TensorProperties(dtype=self._dtype), torch.Size(block.tensor_shape))
        return WriteItem(MetadataIndex(block.key, chunk.offsets), WriteItemType.SHARD, tensor_data=data)

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the blocks are arguments of the constructor")

    def create_local_plan(self) -> SavePlan:
        raise NotImplementedError("there is a plan for each file")

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = create_default_global_save_plan(all_plans)
        metadata.planner_data = {name: (name,) for name in metadata.state_dict_metadata}
        # Megatron-core looks here for tensors that are stored in a shape other than their own: none are.
        metadata.mcore_data = {block.key: {} for block in self._blocks.values()}  # type: ignore[attr-defined]
        return plans, metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            return io.BytesIO(self._none)
        assert write_item.index.offset is not None
        return self._tensor_of(self._blocks[write_item.index.fqn, tuple(write_item.index.offset)])


class Checkpoint:
    """A ``torch_dist`` checkpoint on disk; ``prefix`` is what its keys have before ``model.``.

    ``trusted``: its pickles may run code.

    Raises:
        ConvertError: ``folder`` holds none, an incomplete one, or one that asks for more than weights.
    """

    def __init__(self, folder: Path, prefix: str = "", trusted: bool = False) -> None:
        self.folder, self._prefix, self._trusted = folder, prefix, trusted
        if not (folder / METADATA).is_file():
            raise ConvertError(f"{folder} is no checkpoint of Megatron's: {METADATA} is missing")
        backend = json.loads((folder / METADATA).read_text(encoding="utf-8")).get("sharded_backend")
        if backend != "torch_dist":
            raise ConvertError(
                f"{folder / METADATA}: sharded_backend={backend!r}, only torch_dist can be read; NeMo's "
                "scripts/checkpoint_converters/convert_zarr_to_torch_dist.py rewrites zarr"
            )
        self._reader = FileSystemReader(folder)
        try:
            with only_weights(folder / INDEX, trusted):
                self._metadata = self._reader.read_metadata()
            if not (isinstance(self._metadata, Metadata) and isinstance(self._metadata.storage_data, dict)):
                raise TypeError(f"it holds {type(self._metadata).__name__} and not a checkpoint's metadata")
        except FileNotFoundError:
            raise ConvertError(f"{folder / INDEX}: no such file") from None
        except UnsafeWeightsError as error:
            raise ConvertError(str(error)) from error
        except _DAMAGE as error:
            raise ConvertError(f"{folder / INDEX} is damaged: {error}") from error
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        missing = sorted(
            {info.relative_path for info in self._metadata.storage_data.values() if not self._is_complete(info)}
        )
        if missing:
            raise ConvertError(f"{folder}: missing or cut short: {_first_names(missing)}")

    @property
    def prefixes(self) -> list[str]:
        """What precedes ``model.`` in the keys of layers: one for each model, or its adapters, in the checkpoint."""
        layers = "model.decoder.layers."
        prefixes = {key.partition(layers)[0] for key in self._metadata.state_dict_metadata if layers in key}
        return sorted(prefix for prefix in prefixes if "optimizer" not in prefix)

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Weights by key, without the prefix."""
        start = f"{self._prefix}model."
        return {
            key.removeprefix(self._prefix): value
            for key, value in self._metadata.state_dict_metadata.items()
            if key.startswith(start) and isinstance(value, TensorStorageMetadata)
        }

    def read(self, block: Block) -> torch.Tensor:
        """The block, of ``block.shape``, assembled from the shards that hold it.

        Raises:
            ConvertError: shards are damaged or do not cover the block.
        """
        stored = self.tensors[block.key]
        target = torch.empty(block.shape, dtype=stored.properties.dtype)
        chunk = ChunkStorageMetadata(torch.Size(block.offset), torch.Size(block.shape))
        items = create_read_items_for_chunk_list(self._prefix + block.key, stored, [chunk])
        if sum(item.lengths.numel() for item in items) != target.numel():
            raise ConvertError(f"{self.folder}: {self._prefix}{block.key} has no elements at {block.offset}")
        try:
            with only_weights(self.folder, self._trusted):
                self._reader.read_data(LoadPlan(items), _Target(target))
        except UnsafeWeightsError as error:
            raise ConvertError(str(error)) from error
        except _DAMAGE as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise ConvertError(
                f"{self.folder}: {self._prefix}{block.key} at {block.offset} is damaged: {first}"
            ) from error
        return target

    def _is_complete(self, info: Any) -> bool:
        path = self.folder / info.relative_path
        # Never a file of another folder.
        return path.parent == self.folder and path.is_file() and path.stat().st_size >= info.offset + info.length


class _Target(DefaultLoadPlanner):
    """Reads everything into one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._target


def _first_names(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
