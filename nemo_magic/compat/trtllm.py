"""NeMo-Aligner without TensorRT-LLM, and rotary scaling, which its exporter leaves out. Not run on hardware
(docs/hardware.md)."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LLAMA3_ROPE = {
    "type": "llama3",
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Llama-3's scaling of rotary frequencies, without its factor."""


class TensorRTLLMMissingError(RuntimeError):
    """TensorRT-LLM is enabled and not installed."""


def prepare(enabled: bool) -> None:
    """Replace NeMo-Aligner's module for TensorRT-LLM unless it is ``enabled``. Call before NeMo-Aligner is imported.

    Its actors import TensorRT-LLM in any case, and that import starts MPI, which kills a launch without ``srun --mpi``.

    Raises:
        TensorRTLLMMissingError: it is enabled and not installed.
    """
    if enabled:
        if importlib.util.find_spec("tensorrt_llm") is None:
            raise TensorRTLLMMissingError(
                "generation.engine=trt_llm, but the package tensorrt_llm is not installed: run in the container "
                "(docs/container.md), or set generation.engine=native to decode natively"
            )
        return

    class GPTGenerateTRTLLM:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("TensorRT-LLM was not loaded: generation.engine=native")

    module: Any = types.ModuleType("nemo_aligner.utils.trt_llm")
    module.GPTGenerateTRTLLM, module.HAVE_TRTLLM = GPTGenerateTRTLLM, False
    sys.modules["nemo_aligner.utils.trt_llm"] = module


@contextmanager
def scaled_rotary(factor: float | None) -> Iterator[None]:
    """Within the context, engines are built with Llama-3's scaled rotary frequencies, unless ``factor`` is None.

    The exporter passes on a linear interpolation factor only: an engine of Llama-3.1 would rotate queries and keys by
    other angles than the model that learns.
    """
    if factor is None:
        yield
        return
    from megatron.core.export.trtllm.trtllm_helper import TRTLLMHelper

    unscaled = TRTLLMHelper._get_trtllm_config

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = unscaled(self, *args, **kwargs)
        config.rotary_scaling = LLAMA3_ROPE | {"factor": factor}
        return config

    TRTLLMHelper._get_trtllm_config = scaled
    try:
        yield
    finally:
        TRTLLMHelper._get_trtllm_config = unscaled
