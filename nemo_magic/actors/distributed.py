"""The ranks of a run over torch.distributed: this rank's position, and what ranks exchange beside tensors of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from megatron.core import parallel_state

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One rank's position among all. ``is_source`` marks the one rank of each model-parallel group that talks
    to servers (the judge)."""

    rank: int
    size: int
    dp_rank: int
    dp_size: int
    is_source: bool
    _model_group: Any
    _model_source: int
    _data_group: Any

    @classmethod
    def current(cls) -> World:
        """Read Megatron's initialised parallel state; the only place of ours that does so for the loop."""
        rank = torch.distributed.get_rank()
        source = parallel_state.get_model_parallel_src_rank()
        return cls(
            rank=rank,
            size=torch.distributed.get_world_size(),
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
            is_source=rank == source,
            _model_group=parallel_state.get_model_parallel_group(),
            _model_source=source,
            _data_group=parallel_state.get_data_parallel_group(),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def broadcast_model_parallel(self, value: T) -> T:
        """The source rank's ``value`` on every rank of its model-parallel group."""
        if self.size == self.dp_size:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=self._model_source, group=self._model_group)
        return box[0]

    def gather_data_parallel(self, value: T) -> list[T]:
        """Every data-parallel rank's ``value``, in rank order, on all of them."""
        if self.dp_size == 1:
            return [value]
        values: list[Any] = [None] * self.dp_size
        torch.distributed.all_gather_object(values, value, group=self._data_group)
        return values

    def broadcast_from_main(self, value: T) -> T:
        """Rank 0's ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def sum_data_parallel(self, *values: float) -> list[float]:
        """Element-wise sums over data-parallel ranks."""
        if self.dp_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(tensor, group=self._data_group)
        return tensor.tolist()

    def max_data_parallel(self, value: int) -> int:
        """The largest ``value`` of any data-parallel rank."""
        return max(self.gather_data_parallel(value))

    def barrier(self) -> None:
        """Wait for every rank."""
        torch.distributed.barrier()


def broadcast_from_last_stage(tensor: torch.Tensor | None) -> torch.Tensor:
    """What the last pipeline stage has, of any shape, on all stages."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        assert tensor is not None
        return tensor
    source, group = (
        parallel_state.get_pipeline_model_parallel_last_rank(),
        parallel_state.get_pipeline_model_parallel_group(),
    )
    about: list[Any] = [None if tensor is None else (tensor.dtype, tensor.shape)]
    torch.distributed.broadcast_object_list(about, source, group)
    if tensor is None:
        dtype, shape = about[0]
        tensor = torch.empty(shape, dtype=dtype, device=torch.cuda.current_device())
    torch.distributed.broadcast(tensor, source, group)
    return tensor


def destroy() -> None:
    """End the process groups while the interpreter lives, once every rank has come here; nothing where there are none.

    A backend's thread may still hold a tensor of the last collective. One that lets go of it while the interpreter ends
    is itself ended by Python, and C++ aborts the process for that, now and then.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def share_among_stages(count: int, work: Callable[[Sequence[int]], list[T]]) -> list[T]:
    """The results of ``count`` tasks, in order: every pipeline stage does its own part of them. ``work`` gets the
    numbers of some tasks and gives their results."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if stages == 1:
        return work(range(count))
    own = work(range(parallel_state.get_pipeline_model_parallel_rank(), count, stages))
    shares: list[Any] = [None] * stages
    torch.distributed.all_gather_object(shares, own, group=parallel_state.get_pipeline_model_parallel_group())
    return [shares[i % stages][i // stages] for i in range(count)]


class DeviceMemory:
    """This rank's device memory as a gauge: the highest allocation since ``begin``, in bytes."""

    def begin(self) -> None:
        """Start to measure."""
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Bytes."""
        return float(torch.cuda.max_memory_allocated())
