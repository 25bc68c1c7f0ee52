"""Megatron-core 0.16, mended in three places, and without CUDA and transformer_engine.

The mended defects:

- ``.metadata`` of a checkpoint holds every rank's plan of the save, by classes of Megatron-core's own. Nothing reads it
  (it is for ``cached_metadata``, which is off), and nobody else can: neither Megatron-core 0.10 nor a reader that
  builds weights only.
- The router of a mixture of experts asks whether ``te_general_gemm`` is None, a name that does not exist where
  transformer_engine is not installed (``moe_utils`` imports it in a ``try`` that gives it no other value).
- Where neither transformer_engine nor apex is installed, Adam is torch's, with a count of steps in the state of every
  parameter. The distributed optimizer fails to describe its state before its first step, and zero moments that are
  created to be saved have no count, so that the next step fails.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch

from nemo_magic.compat.adam import FusedAdam


def mend() -> None:
    """Keep the plans of a save out of its ``.metadata``, and let routers and optimizers do without transformer_engine;
    a second call changes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every kernel that is not here
        import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem
        import megatron.core.transformer.moe.moe_utils as experts

        if not any(importlib.util.find_spec(name) for name in ("transformer_engine", "apex")):
            _use_own_adam()
    vars(experts).setdefault("te_general_gemm", None)
    writer: Any = filesystem.FileSystemWriterAsync
    if getattr(writer, "_nemo_magic_mended", False):
        return
    writer._nemo_magic_mended = True
    finish = writer.finish

    @functools.wraps(finish)
    def finish_without_plans(self: Any, metadata: Any, results: Any) -> None:
        vars(metadata).pop("all_local_plans", None)
        finish(self, metadata, results)

    writer.finish = finish_without_plans


def _use_own_adam() -> None:
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    def fused_adam(adam_w_mode: bool = True, **options: Any) -> FusedAdam:
        assert adam_w_mode
        return FusedAdam(**options)

    module: Any = optimizer
    module.Adam, module.USING_PYTORCH_OPTIMIZER = fused_adam, False
    module = distributed
    module.Adam, module.HAVE_APEX_OR_TE, module.USING_APEX_OPTIMIZER = FusedAdam, True, True


def without_cuda() -> None:
    """Give Megatron-core CPU meanings for its random states. Imports all of it that a model, its optimizer and its
    checkpoints need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every kernel that is not here
        import megatron.core.optimizer  # noqa: F401
        import megatron.core.tensor_parallel.random as parallel_random

    def set_state(state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(state)

    def get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    random: Any = parallel_random
    random._set_cuda_rng_state, random._get_cuda_rng_state = set_state, get_state
