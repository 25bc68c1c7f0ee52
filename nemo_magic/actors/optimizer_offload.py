"""Optimizer state in host memory while its role does not learn, so that two 70B actors can share their GPUs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch


class Offload:
    """Sends an optimizer's state to host memory (pinned where there is a GPU to copy from) and fetches it back.

    The buffers on the host are kept, so that every later switch is a copy and no allocation. Knows torch's optimizers,
    NeMo's wrapper of them with fp32 main parameters, the backend megatron's with its main weights, and apex's
    distributed Adam. What is on the host already, as
    ``on_host`` says, is left where it is.
    """

    def __init__(self, on_host: Callable[[torch.Tensor], bool] = lambda tensor: tensor.device.type == "cpu") -> None:
        self._on_host = on_host
        self._home: dict[int, tuple[torch.device, Callable[[torch.Tensor], None], torch.Tensor]] = {}
        self._buffers: dict[int, torch.Tensor] = {}

    @property
    def is_away(self) -> bool:
        """Whether the state is in host memory now."""
        return bool(self._home)

    def send(self, optimizer: Any) -> None:
        """Move the state to the host. Harmless when it is there."""
        if self._home:
            return
        if hasattr(optimizer, "init_state"):
            optimizer.init_state()  # a save would create them where it finds their weights: on the host
        for number, (tensor, put) in enumerate(_slots(optimizer)):
            if self._on_host(tensor):
                continue
            buffer = self._buffers.get(number)
            if buffer is None or buffer.shape != tensor.shape:
                buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._buffers[number] = buffer
            buffer.copy_(tensor, non_blocking=True)
            self._home[number] = (tensor.device, put, buffer)
        if self._home:
            torch.cuda.synchronize()
            for _, put, buffer in self._home.values():
                put(buffer)
            torch.cuda.empty_cache()

    def fetch(self, optimizer: Any) -> None:
        """Move the state back to where it was. Harmless when it is there."""
        for device, put, buffer in self._home.values():
            put(buffer.to(device, non_blocking=True, copy=True))
        if self._home:
            torch.cuda.synchronize()
        self._home = {}


_SHARDS = ("params_shard", "param_remainders_shard", "exp_avg_shard", "exp_avg_sq_shard")


def _slots(optimizer: Any) -> Iterator[tuple[torch.Tensor, Callable[[torch.Tensor], None]]]:
    """Every tensor of an optimizer's state, with the way to put another in its place."""
    wrapped = getattr(optimizer, "optimizer", None)
    if wrapped is not None:  # NeMo's MainParamsOptimizerWrapper
        for group in optimizer.fp32_from_float16_groups:
            for parameter in group:
                yield parameter.data, partial(setattr, parameter, "data")
        yield from _slots(wrapped)
        return
    for weight in getattr(optimizer, "main_weights", ()):
        yield weight.data, partial(setattr, weight, "data")
    state = optimizer.state
    for bucket in state.get("buckets", ()):  # apex's DistributedFusedAdam
        for name in _SHARDS:
            tensor = getattr(bucket, name, None)
            if tensor is not None:
                yield tensor, partial(setattr, bucket, name)
    for values in list(state.values()):
        if isinstance(values, Mapping):
            for name, tensor in list(values.items()):
                if torch.is_tensor(tensor) and tensor.dim() > 0:
                    yield tensor, partial(operator.setitem, values, name)
