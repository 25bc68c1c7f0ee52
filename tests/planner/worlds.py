"""Worlds of a few ranks whose shapes are planned here and measured by ``real_world.py``. Imports no pytest."""

from __future__ import annotations

from nemo_magic.config import compose, role_model
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig

ROWS, TOKENS = 3, 40

# name: (TP, PP, recompute)
WORLDS = {
    "tp2": (2, 1, "none"), "pp2": (1, 2, "full"), "tp1": (1, 1, "selective"),
    "lora_tp2": (2, 1, "lora"), "lora_pp2": (1, 2, "lora full"),
}  # fmt: skip
SIZES = ["model.num_layers=4", "model.num_query_groups=2", "model.qkv_bias=true", "model.qk_layernorm=true"]
LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8"]
FULL = [
    "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]  # fmt: skip


def overrides(tp: int, pp: int, recompute: str) -> list[str]:
    """Of conf/magic_sandbox.yaml, but what adapters stand on."""
    layout = [f"model.tensor_model_parallel_size={tp}", f"model.pipeline_model_parallel_size={pp}"]
    words = [f"trainer.devices={tp * pp}", *layout, *SIZES]
    if recompute.startswith("lora"):
        words += LORA
    if recompute.endswith("full"):
        words += FULL
    elif recompute == "selective":
        words += ["model.activations_checkpoint_granularity=selective"]
    return words


def planned_model(name: str) -> ModelConfig:
    """The model of a world as the planner gets it."""
    return role_model(compose("magic_sandbox", overrides(*WORLDS[name]), command="plan"), Role.DEFENDER)
