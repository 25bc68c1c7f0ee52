"""NeMo's LoRA adapters, mended: seven defects of NeMo 2.1 and Megatron-core 0.10, four of which say nothing.

1. Without transformer_engine the module of adapters cannot be imported (``mcore_mixins.py:18``).
2. Attention with adapters leaves out ``q_layernorm`` and ``k_layernorm`` (``mcore_mixins.py:132-224``): what they
   compute is missing, and so is what hangs on them (``actors.cached_rotary``).
3. Activation recompute needs an input that has a gradient, and a frozen embedding gives none: ``uniform`` fails,
   ``block`` trains no layer that it recomputes.
4. Adapters of attention are saved as if every tensor-parallel rank had the same, and those of MLPs not at all
   (``nlp_adapter_mixins.py:458``).
5. The gate's and the up projection's rows of ``linear_fc1``'s adapter are not kept apart: loaded at another
   tensor-parallel size they are mixed up.
6. The backward pass of a frozen linear layer multiplies a gradient that is not contiguous, row by row.
7. Adapted layers ask OmegaConf which adapters they have, a dozen times in each call.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch

_MIXINS = "nemo.collections.nlp.modules.common.megatron.adapters.mcore_mixins"
_TE = "megatron.core.extensions.transformer_engine"
_UP_PROJECTION = "lora_hto4h_adapter"


def make_importable() -> None:
    """Import NeMo's adapters where transformer_engine is not installed (1). Call before NeMo's models are imported."""
    if _MIXINS in sys.modules or importlib.util.find_spec("transformer_engine") is not None:
        return
    stub: Any = types.ModuleType(_TE)
    stub.SplitAlongDim = None  # the one name that is taken, and tested for None
    sys.modules[_TE] = stub
    try:
        importlib.import_module(_MIXINS)
    finally:
        del sys.modules[_TE]


def mend_classes() -> None:
    """Mend what holds for every model (2, 6); a second call does nothing."""
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight

    attention: Any = importlib.import_module(_MIXINS).MCoreSelfAttentionMixin
    if getattr(attention, "_nemo_magic_mended", False):
        return
    attention._nemo_magic_mended = True
    without_norms = attention.get_query_key_value_tensors

    @functools.wraps(without_norms)
    def get_query_key_value_tensors(self: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        query, key, value = without_norms(self, *args, **kwargs)
        if self.q_layernorm is not None:
            query = self.q_layernorm(query)
        if self.k_layernorm is not None:
            key = self.k_layernorm(key)
        return query, key, value

    attention.get_query_key_value_tensors = get_query_key_value_tensors
    backward = LinearWithFrozenWeight.backward

    @functools.wraps(backward)
    def backward_in_one_product(ctx: Any, grad_output: torch.Tensor) -> Any:
        return backward(ctx, grad_output.contiguous())

    LinearWithFrozenWeight.backward = staticmethod(backward_in_one_product)


def mend_model(modules: Iterable[torch.nn.Module]) -> None:
    """Mend a model that has adapters: what recompute needs (3), how they are saved (4, 5) and found (7)."""
    for module in modules:
        if getattr(module, "pre_process", False):
            module.get_submodule("embedding").register_forward_hook(begin_gradients)
        for layer in adapted_layers(module):
            layer.adapter_layer.__class__ = _ShardedAdapters
            layer.adapter_layer.is_gated = layer.config.gated_linear_unit
            layer.adapter_cfg = {name: {"enabled": True} for name in layer.adapter_cfg}


def adapted_layers(model: torch.nn.Module) -> list[Any]:
    """The modules of ``model`` that have adapters: attentions and MLPs."""
    adapted: Any = importlib.import_module(_MIXINS).MCoreAdapterModuleMixin
    return [module for module in model.modules() if isinstance(module, adapted) and module.is_adapter_available()]


def begin_gradients(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """A forward hook of a frozen embedding: its output has a gradient (3)."""
    return output.requires_grad_() if torch.is_grad_enabled() and not output.requires_grad else output


def sharded_adapters(adapters: Mapping[str, torch.nn.Module], is_gated: bool) -> torch.nn.ModuleDict:
    """A layer's ``adapter_layer``, made without NeMo; ``is_gated``: its MLP's ``linear_fc1`` is a gate and an up
    projection."""
    built = _ShardedAdapters(adapters)
    built.is_gated = is_gated
    return built


class _ShardedAdapters(torch.nn.ModuleDict):
    """A layer's ``adapter_layer``, which knows how its tensors are cut."""

    is_gated = False

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

        state: dict[str, Any] = {}
        adapters: Any = self.items()
        for key, adapter in adapters:
            # A member of an Enum of strings, whose f-string is its name from Python 3.11 on.
            name = getattr(key, "value", key)
            part = adapter.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
            if self.is_gated and name == _UP_PROJECTION:
                weight = f"{prefix}{name}.linear_out.weight"
                part[weight] = apply_swiglu_sharded_factory(part[weight], sharded_offsets)
            state.update(part)
        return state
