"""The CPU lane: NeMo 2.1, Megatron-core 0.10 and NeMo-Aligner 0.7 over gloo, unedited.

Those packages name CUDA in a few dozen places, nearly all through a handful of entry points of ``torch.cuda``. This
module gives these entry points their CPU meaning, and gives NeMo torch versions of the functions that it takes from
apex. It is the only file that patches a library for a device, and the only one that asks for the device. ``install()``
must run before ``nemo`` is imported; it refuses to run where CUDA is available.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch.utils._device import _device_constructors

from nemo_magic.compat import lora, megatron, trtllm
from nemo_magic.compat.adam import FusedAdam

_CPU = torch.device("cpu")
_FACTORIES = [
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
    "empty_like",
]
_TYPED = ("LongTensor", "FloatTensor", "ByteTensor", "IntTensor", "HalfTensor", "BFloat16Tensor", "BoolTensor")


class CudaAvailableError(RuntimeError):
    """The CPU lane is requested on a machine that has CUDA."""


def installed() -> bool:
    """Whether this process runs in the CPU lane."""
    return getattr(torch, "_nemo_magic_cpu_lane", False)


def install(announce: bool = True, with_nemo: bool = True) -> None:
    """Make this process run Megatron-core on CPU, ``with_nemo`` the NeMo stack without TensorRT-LLM; a second call does
    nothing.

    Raises:
        CudaAvailableError: where ``torch.cuda.is_available()``; use ``trainer.accelerator=gpu`` there.
    """
    if installed():
        _announce(announce)
        return
    if torch.cuda.is_available():
        raise CudaAvailableError(
            "trainer.accelerator=cpu, but this machine has CUDA: the CPU lane would patch torch.cuda under a working "
            "GPU. Use trainer.accelerator=gpu, or hide the devices with CUDA_VISIBLE_DEVICES=''."
        )
    # NeMo 2.1 parses this variable of NVIDIA's containers unguarded.
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "24.07")
    # pyarrow's allocator would start a thread when it is loaded, and this process may have to fork ranks.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    torch.set_num_threads(1)
    _patch_torch_cuda()
    _patch_gloo()
    with _nothing_compiled():
        if with_nemo:
            _patch_random_states()
            _do_without_apex()
        else:
            megatron.without_cuda()
    # Last: torch.jit.script, which runs while those packages are imported, cannot read a wrapped factory.
    _patch_factories()
    torch._nemo_magic_cpu_lane = True  # type: ignore[attr-defined]
    _announce(announce)


def _announce(wanted: bool) -> None:
    """Once a process, and once a run: ranks that are forked from one who said it have said it."""
    if wanted and os.environ.get("RANK", "0") == "0" and not getattr(torch, "_nemo_magic_announced", False):
        torch._nemo_magic_announced = True  # type: ignore[attr-defined]
        print(
            "nemo-magic: CPU lane active (torch.cuda entry points answered on CPU, gloo, one thread per rank)",
            flush=True,
        )


def tell_rank(rank: int) -> None:
    """In a fork that is to be a rank: what Lightning and NeMo asked the environment while they were imported, if they
    were."""
    if "nemo.utils" not in sys.modules:
        return
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from nemo.utils import logging

    rank_zero_only.rank = rank
    if rank > 0:
        logging.remove_stream_handlers()


def do_without_apex() -> None:
    """Make the stack run on a GPU without apex and transformer_engine: Megatron-core's layers, torch's Adam.

    For measurements; a training run needs the container.

    Raises:
        RuntimeError: one of the packages is installed, and would be patched while in use.
    """
    for package in ("apex", "transformer_engine"):
        if importlib.util.find_spec(package) is not None:
            raise RuntimeError(f"{package} is installed, and would be patched: use it")
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "24.07")
    _do_without_apex()


def _do_without_apex() -> None:
    trtllm.prepare(enabled=False)
    _patch_writing()
    lora.make_importable()
    _patch_nemo()
    _register_adam()
    import nemo_aligner.models.nlp.gpt.megatron_gpt_ppo_actor  # noqa: F401


# --- torch


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


class _NoStream:
    """A CUDA stream or event where there is none: every method does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *args: Any) -> None: ...


def _patch_torch_cuda() -> None:
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    for name in ("set_device", "synchronize", "empty_cache", "set_stream", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _NoStream()
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # Megatron's RNG tracker seeds its parallel states through torch.cuda.manual_seed.
    cuda.manual_seed = cuda.manual_seed_all = torch.default_generator.manual_seed
    # There is one memory: what the process holds of it stands for what it allocated on a device.
    cuda.max_memory_allocated = lambda *args, **kwargs: psutil.Process().memory_info().rss
    cuda.mem_get_info = lambda *args: (0, 0)
    for name in _TYPED:
        setattr(cuda, name, getattr(torch, name))

    tensor: Any = torch.Tensor
    tensor.cuda = lambda self, *args, **kwargs: self
    module: Any = torch.nn.Module
    module.cuda = lambda self, *args, **kwargs: self
    # Megatron's optimizers compare Tensor.type() with 'torch.cuda.FloatTensor'.
    type_of = tensor.type

    def type_as_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_of(self, *args, **kwargs)
        if isinstance(answer, str) and not answer.startswith("torch.cuda."):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    tensor.type = type_as_cuda


def _patch_factories() -> None:
    def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = _CPU
            if kwargs.get("pin_memory"):  # there is no device to copy to
                kwargs["pin_memory"] = False
            return function(*args, **kwargs)

        return call

    # "with torch.device(…)" knows factories by identity and looks them up once: these, and not what stands for them.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))

    to = torch.Tensor.to

    def to_cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (_CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return to(self, *args, **kwargs)

    torch.Tensor.to = to_cpu  # type: ignore[method-assign,assignment]


def _patch_gloo() -> None:
    """gloo refuses the 0-d inputs that nccl takes (NeMo-Aligner's rebalance_nd_tensor gathers one)."""
    gather = torch.distributed.all_gather_into_tensor

    def all_gather_into_tensor(output: torch.Tensor, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return gather(output, input.reshape(1) if input.dim() == 0 else input, *args, **kwargs)

    distributed: Any = torch.distributed
    distributed.all_gather_into_tensor = all_gather_into_tensor


# --- Megatron-core and NeMo


def _patch_random_states() -> None:
    import megatron.core.tensor_parallel.random as parallel_random

    parallel_random._set_cuda_rng_state = lambda state, device=-1: torch.set_rng_state(state)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Megatron-core and NeMo call torch.compile on their fusions at import. The lane uses none of them, and importing
    the compiler takes longer than importing torch, on every rank."""
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _patch_writing() -> None:
    import megatron.core.dist_checkpointing.strategies.filesystem_async as filesystem_async
    from torch.distributed.checkpoint import filesystem

    # torch > 2.5 gave this private function two more arguments.
    write: Any = filesystem._write_item
    if "serialization_format" in inspect.signature(write).parameters:
        transforms = filesystem._StorageWriterTransforms()
        serialization = filesystem.SerializationFormat.TORCH_SAVE
        filesystem_async._write_item = lambda stream, data, item, key: write(
            transforms, stream, data, item, key, serialization
        )


def _patch_nemo() -> None:
    import nemo.collections.nlp.models.language_modeling.megatron_gpt_model as gpt
    import nemo.collections.nlp.models.nlp_model as nlp_model
    import nemo.collections.nlp.modules.common.megatron.build_model as build_model
    import nemo.collections.nlp.modules.common.megatron.clip_grads as clip_grads
    import nemo.collections.nlp.modules.common.megatron.megatron_init as megatron_init
    import nemo.collections.nlp.modules.common.megatron.utils as megatron_utils
    import nemo.collections.nlp.parts.nlp_overrides as nlp_overrides
    import nemo.core.optim.optimizer_with_main_params as main_params
    import numpy as np
    from megatron.core import utils as core_utils
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.layers import set_defaults_if_not_set_tensor_model_parallel_attributes
    from nemo.core.optim.mcore_optim import McoreDistributedOptimizer

    from nemo_magic.compat.fused_attention import FusedDotProductAttention

    if not nlp_overrides.HAVE_APEX:
        nlp_overrides.HAVE_APEX = True
        nlp_overrides.McoreDistributedOptimizer = McoreDistributedOptimizer
        nlp_overrides.MegatronDistributedFusedAdam = type("MegatronDistributedFusedAdam", (), {})
    # bert_spec.py raises NameError without transformer_engine; a GPT model needs no list of BERT names.
    nlp_model.get_megatron_pretrained_bert_models = list
    if not gpt.HAVE_TE:
        # NeMo builds every layer spec it knows, some of them only with transformer_engine, and then picks one.
        def local_spec(
            spec_name: str,
            transformer_config: Any = None,
            use_te: bool = True,
            hyena_cfg: Any = None,
            fp8: bool = False,
        ) -> Any:
            if spec_name or use_te or fp8:
                raise ValueError(
                    f"model.name={spec_name!r}, model.transformer_engine={use_te}, fp8={fp8}: without "
                    "transformer_engine only Megatron-core's local GPT layers exist (name '', transformer_engine false)"
                )
            spec = get_gpt_layer_local_spec(transformer_config.num_moe_experts, transformer_config.moe_grouped_gemm)
            spec.submodules.self_attention.submodules.core_attention = FusedDotProductAttention
            return spec

        gpt.get_specs = local_spec
    # Names NeMo takes from apex; Megatron-core has torch versions of them.
    if not clip_grads.HAVE_APEX:
        build_model.set_defaults_if_not_set_tensor_model_parallel_attributes = (
            set_defaults_if_not_set_tensor_model_parallel_attributes
        )
        clip_grads.multi_tensor_applier = core_utils.local_multi_tensor_applier
        clip_grads.amp_C = types.SimpleNamespace(multi_tensor_l2norm=core_utils.local_multi_tensor_l2_norm)
    if not megatron_utils.HAVE_APEX:
        megatron_utils.listify_model = lambda model: model if isinstance(model, list) else [model]
        megatron_utils.FusedLayerNorm = megatron_utils.FastLayerNorm = torch.nn.LayerNorm
        megatron_utils.MixedFusedRMSNorm = torch.nn.RMSNorm
    if not main_params.HAVE_APEX:
        main_params.HAVE_APEX = True
        main_params.multi_tensor_applier = core_utils.local_multi_tensor_applier
        main_params.amp_C = types.SimpleNamespace(multi_tensor_scale=core_utils.local_multi_tensor_scale)

    def set_random_seed(seed: int) -> None:
        """NeMo's own, less its condition that a CUDA device exists."""
        staged = seed + 100 * megatron_init.get_pipeline_model_parallel_rank()
        random.seed(staged)
        np.random.seed(staged)
        torch.manual_seed(staged)
        megatron_init.tensor_parallel.model_parallel_cuda_manual_seed(staged)

    megatron_init._set_random_seed = set_random_seed


# --- optimizer


def _register_adam() -> None:
    from nemo.core.config.optimizers import AdamWParams
    from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS, register_optimizer

    if "cpu_fused_adam" not in AVAILABLE_OPTIMIZERS:
        register_optimizer("cpu_fused_adam", FusedAdam, type("FusedAdamParams", (AdamWParams,), {}))
