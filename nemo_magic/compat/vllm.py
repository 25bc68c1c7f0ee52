"""vLLM in the process of a rank: what it reads from the environment when it is imported, and what it changes there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_ENVIRONMENT = {
    # The engine in this process: its executor takes part in the collectives of Megatron's ranks.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class VLLMMissingError(RuntimeError):
    """vLLM is asked for and not installed."""


def prepare() -> None:
    """Call before vLLM is imported. What the environment says already is left.

    Raises:
        VLLMMissingError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise VLLMMissingError(
            "generation.engine=vllm, but the package vllm is not installed: install the environment of "
            "backend=megatron (docs/backends.md), or set generation.engine=native"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def external_ranks(name: str) -> Iterator[None]:
    """Within the context engines can be built that use the process groups that are there.

    vLLM's executor for ranks that somebody else started reads their numbers from variables that only torchrun sets.
    Its worker for CPUs names the memory that ranks share alike in all runs on a machine: here it is called ``name``,
    which is one word, of this run, and equal on all ranks. And that worker replaces ``torch.set_num_threads`` by a
    function that does nothing.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    device = torch.cuda.current_device()
    rank = torch.distributed.get_rank()
    arguments = f"env://:{name}", rank, device if isinstance(device, int) else rank
    theirs, set_num_threads = ExecutorWithExternalLauncher._distributed_args, torch.set_num_threads
    ExecutorWithExternalLauncher._distributed_args = lambda _: arguments
    try:
        yield
        torch.distributed.barrier()  # all have it mapped; a rank that failed does not wait for those that wait for it
    finally:
        ExecutorWithExternalLauncher._distributed_args = theirs
        torch.set_num_threads = set_num_threads
        # A run that is killed would leave it behind.
        for file in Path("/dev/shm").glob(f"*{name}*"):
            file.unlink(missing_ok=True)
