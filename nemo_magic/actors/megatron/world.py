"""The process groups and random states of this rank, by torch.distributed and Megatron-core."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel

if TYPE_CHECKING:
    from nemo_magic.config.schema import TrainerConfig
    from nemo_magic.model_config import ModelConfig

_TIMEOUT = timedelta(minutes=30)
_STARTERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


def join_world(model: ModelConfig, trainer: TrainerConfig) -> None:
    """Start the process groups, unless the other role has: ``trainer.num_nodes`` × ``trainer.devices`` ranks, as
    torchrun, srun or ``nemo-magic`` started them."""
    if torch.distributed.is_initialized():
        return
    rank, size, local = _rank_of_process()
    torch.cuda.set_device(local)
    backend = "gloo" if trainer.accelerator == "cpu" else "nccl"
    if size == 1:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)
    else:
        torch.distributed.init_process_group(backend, rank=rank, world_size=size, timeout=_TIMEOUT)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
    )


def seed_everything(seed: int) -> None:
    """As the other backend does: one stream for a pipeline stage, and Megatron's own for tensor-parallel ranks."""
    staged = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(staged)
    np.random.seed(staged)
    torch.manual_seed(staged)
    tensor_parallel.model_parallel_cuda_manual_seed(staged)


def _rank_of_process() -> tuple[int, int, int]:
    """Rank, how many there are, and rank on this node. Variables that were left behind are gone by now
    (``runtime.started_rank.forget_partial``)."""
    for rank, size, local in _STARTERS:
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, 0))
    return 0, 1, 0
