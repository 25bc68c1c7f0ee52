"""Tiny PEFT adapters with random weights, as ``peft`` writes them, and what they add to their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.convert.tiny_hf import tensors

MODULES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
ONE_A = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
RANK, ALPHA = 4, 6


def make_peft(folder: Path, base: Path, shared: bool = True, left_out: tuple[str, ...] = (), **config: Any) -> Path:
    """Write adapters of ``base`` to ``folder``; where ``shared``, layers that Megatron has as one have one A."""
    weights, draw = tensors(base), torch.Generator().manual_seed(9)
    found: dict[str, torch.Tensor] = {}
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)
    for layer in range(layers):
        for part, modules in MODULES.items():
            for module in modules:
                if module in left_out:
                    continue
                rows, width = weights[f"model.layers.{layer}.{part}.{module}.weight"].shape
                name = f"base_model.model.model.layers.{layer}.{part}.{module}"
                a = 0.2 * torch.randn(RANK, width, generator=draw)
                if shared and module in ONE_A:
                    a = found[f"base_model.model.model.layers.{layer}.{part}.{ONE_A[module]}.lora_A.weight"].clone()
                found[f"{name}.lora_A.weight"] = a
                found[f"{name}.lora_B.weight"] = 0.2 * torch.randn(rows, RANK, generator=draw)
    folder.mkdir(parents=True)
    save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    keys = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(keys | config))
    return folder


def merged(base: Path, adapters: Path, scale: float = ALPHA / RANK) -> dict[str, torch.Tensor]:
    """The weights of ``base`` with what the adapters add, by PEFT's own definition."""
    weights, found = tensors(base), load_file(adapters / "adapter_model.safetensors")
    for name, a in found.items():
        if ".lora_A." in name:
            key = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            weights[key] = weights[key] + scale * (found[name.replace(".lora_A.", ".lora_B.")] @ a)
    return weights
