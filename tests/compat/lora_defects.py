"""What NeMo's adapters do by themselves, told as JSON. Run by the tests in a process of its own, which it patches."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_magic.compat import cpu, lora


class _Products(TorchDispatchMode):
    """The names of matrix products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.__name__:
            self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def main(_: list[str]) -> None:
    cpu.install(announce=False)
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight

    lora.mend_classes()
    found: dict[str, Any] = {"adapters": importlib.import_module(lora._MIXINS).SplitAlongDim is None}
    try:
        importlib.import_module(lora._TE)
    except ImportError as error:
        found["transformer_engine"] = str(error)
    mended = LinearWithFrozenWeight.backward
    weight, gradients = torch.randn(5, 3), []
    for name, backward in (("mended", mended), ("unmended", mended.__wrapped__)):
        LinearWithFrozenWeight.backward = staticmethod(backward)
        x = torch.ones(4, 2, 3, requires_grad=True)
        output = LinearWithFrozenWeight.apply(x, weight, None, False)
        with _Products() as seen:
            output.backward(torch.arange(40.0).view(2, 4, 5).transpose(0, 1))
        found[name] = sorted(seen.names)
        gradients.append(x.grad)
    found["equal"] = torch.allclose(*gradients)
    found["off"] = _switched_off()
    found["asked"] = _asked()
    print(json.dumps(found))


def _switched_off() -> dict[str, bool]:
    """Whether an adapter of a model that is a list is off in NeMo-Aligner's context, in ours, and after it."""
    from nemo_aligner.utils.utils import adapter_control

    from nemo_magic.actors.nemo_aligner.actor import MagicActor

    class Layer(torch.nn.Module, importlib.import_module(lora._MIXINS).MCoreAdapterModuleMixin):  # type: ignore[misc]
        off = False

        def is_adapter_available(self) -> bool:
            return True

        def set_enabled_adapters(self, name: str | None = None, enabled: bool = True) -> None:
            self.off = not enabled

    layer, actor = Layer(), torch.nn.Module()
    actor.model = [layer]
    actor.get_model_module_list = lambda: [layer]
    with adapter_control(actor):
        found = {"theirs": layer.off}
    with MagicActor.without_adapters(actor):  # type: ignore[arg-type]
        found["ours"] = layer.off
    return found | {"after": layer.off}


def _asked() -> dict[str, int]:
    """How often a layer asks OmegaConf to find its adapter, as NeMo made it and mended."""
    from omegaconf import DictConfig, OmegaConf

    class Layer(torch.nn.Module, importlib.import_module(lora._MIXINS).MCoreAdapterModuleMixin):  # type: ignore[misc]
        config = SimpleNamespace(gated_linear_unit=False)

    layer: Any = Layer()
    layer.adapter_layer = torch.nn.ModuleDict({"lora": torch.nn.Identity()})
    layer.adapter_cfg = OmegaConf.create({"lora": {"enabled": True}})
    found, model = {}, torch.nn.Sequential(layer)
    with mock.patch.object(DictConfig, "get", autospec=True, side_effect=DictConfig.get) as get:
        assert layer.get_adapter_module("lora") is layer.adapter_layer["lora"]
        found["theirs"] = get.call_count
        lora.mend_model([model])
        get.reset_mock()
        assert layer.get_adapter_module("lora") is layer.adapter_layer["lora"]
        found["ours"] = get.call_count
    layer.set_enabled_adapters(enabled=False)
    return found | {"enabled": int(layer.adapter_cfg["lora"]["enabled"])}


if __name__ == "__main__":
    main([])
