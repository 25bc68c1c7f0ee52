"""Defects of NeMo's adapters that show without a model (the others: tests/actors/test_adapters.py)."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_magic.compat import cpu, lora


def test_without_transformer_engine_megatrons_module_of_it_cannot_be_imported_and_the_adapters_can() -> None:
    cpu.install(announce=False)
    assert importlib.util.find_spec("transformer_engine") is None
    with pytest.raises(ImportError):
        importlib.import_module("megatron.core.extensions.transformer_engine")
    mixins = importlib.import_module(lora._MIXINS)
    assert mixins.SplitAlongDim is None


class _Products(TorchDispatchMode):
    """The names of matrix products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "mm" in func.__name__:
            self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_the_backward_pass_of_a_frozen_layer_is_one_product() -> None:
    cpu.install(announce=False)
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight

    lora.mend_classes()

    class Context:
        saved_tensors = (torch.randn(5, 3),)
        allreduce_dgrad = False

    grad = torch.randn(2, 4, 5).transpose(0, 1)
    results, products = [], []
    for backward in (LinearWithFrozenWeight.backward, LinearWithFrozenWeight.backward.__wrapped__):
        with _Products() as seen:
            results.append(backward(Context(), grad)[0])
        products.append(seen.names)
    assert products == [{"mm"}, {"bmm"}]
    assert torch.allclose(*results)
