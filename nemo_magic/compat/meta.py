"""A rank of any layout on one machine without devices: Megatron builds and runs there, on shapes alone.

Process groups are torch's fake ones, whose collectives do nothing, and tensors are on the meta device, which has no
memory. So Megatron itself says how many parameters a rank has, what its backward pass keeps and how much it computes.
Everything is restored when the context ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

META = torch.device("meta")


class _CudaIsMeta(TorchFunctionMode):
    """Replaces CUDA devices by the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = META
        return func(*args, **options)


@contextmanager
def rank_of(tp: int, pp: int, stage: int = 0) -> Iterator[None]:
    """Within the context this process is the first rank of pipeline stage ``stage`` among ``tp × pp`` ranks.

    Raises:
        RuntimeError: this process is a rank of a real world already.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as parallel_random

    if torch.distributed.is_initialized():
        raise RuntimeError("a plan is made in a process of its own, and this one is a rank of a running world")
    new_group = torch.distributed.new_group

    def fake_group(*args: Any, **kwargs: Any) -> Any:
        return new_group(*args, **{**kwargs, "backend": "fake"})

    with ExitStack() as stack:
        # Pipeline stages are the outermost dimension of Megatron's rank order.
        torch.distributed.init_process_group("fake", rank=stage * tp, world_size=tp * pp, store=FakeStore())
        stack.callback(torch.distributed.destroy_process_group)
        for target, name, value in (
            (torch.distributed, "new_group", fake_group),
            (torch.cuda, "current_device", lambda: META),
            (torch.cuda, "get_rng_state", lambda *args: torch.get_rng_state()),  # of Megatron-core 0.10
            (torch.cuda.random, "get_rng_state", lambda *args, **kwargs: torch.get_rng_state()),  # of 0.16
            (torch.cuda, "manual_seed", lambda seed: None),
            (torch.Tensor, "cuda", lambda self, *args, **kwargs: self),
            (parallel_random, "_set_cuda_rng_state", lambda *args, **kwargs: None),
        ):
            stack.enter_context(patch.object(target, name, value))
        parallel_state.initialize_model_parallel(tp, pp)
        stack.callback(parallel_state.destroy_model_parallel)
        parallel_random.model_parallel_cuda_manual_seed(1)
        stack.callback(parallel_random.get_cuda_rng_tracker().reset)
        stack.enter_context(_CudaIsMeta())
        yield
