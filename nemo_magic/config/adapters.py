"""Checks of roles that are adapters (``model.peft``), and whether both share one base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from nemo_magic.config.schema import MagicConfig
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig, OptimConfig, PeftConfig

OPTIMIZERS = ("fused_adam", "cpu_fused_adam")
"""Optimizers for adapters. NeMo refuses apex's distributed Adam; the state of Megatron-core's cannot be saved with
adapters (``Data should be 1D for a flattened``), and there is too little of it to be worth sharding."""

_SLOW_GLU = ("swiglu", "geglu", "reglu")


def shares_base(cfg: MagicConfig, roles: Mapping[Role, ModelConfig]) -> bool:
    """Whether both of ``roles`` are adapters of weights that are in memory once."""
    return cfg.actors.share_base is not False and not list(_obstacles(cfg, roles))


def adapter_faults(cfg: MagicConfig, role: Role, model: ModelConfig) -> Iterator[str]:
    """What is wrong with a role's adapters, each with what to set instead."""
    peft, lora, options = model.peft, model.peft.lora_tuning, cfg.actors.of(role)
    if options.is_remote or (cfg.game.self_play and role is Role.ATTACKER):
        return
    if not peft.is_lora:
        if peft.restore_from_path is not None:
            yield (
                f"model.peft.restore_from_path={peft.restore_from_path} are adapters, and model.peft.peft_scheme=none: "
                "set it to lora"
            )
        return
    scheme, tp = "model.peft.peft_scheme=lora", model.tensor_model_parallel_size
    if model.optim.name not in OPTIMIZERS:
        instead = "cpu_fused_adam" if cfg.trainer.accelerator == "cpu" else "fused_adam"
        yield f"{scheme}: adapters cannot learn by model.optim.name={model.optim.name}, set it to {instead}"
    if cfg.grpo.reference_every is not None:
        yield (
            f"grpo.reference_every={cfg.grpo.reference_every} moves a reference policy, which with {scheme} is what "
            "the role began as: set it to null"
        )
    if lora.adapter_dim % max(tp, 1):
        below = lora.adapter_dim // tp * tp
        yield (
            f"model.peft.lora_tuning.adapter_dim={lora.adapter_dim} is not divisible by "
            f"model.tensor_model_parallel_size={tp}: try {f'{below} or {below + tp}' if below else tp}"
        )
    if model.activation in _SLOW_GLU and "mlp_fc1" in lora.targets:
        yield (
            f"{scheme}: NeMo makes adapters of a wrong size for model.activation={model.activation}: set it to "
            f"fast-{model.activation}, which is the same function"
        )


def missing_bases(cfg: MagicConfig, roles: Mapping[Role, ModelConfig]) -> Iterator[str]:
    """Adapters that have nothing to stand on."""
    for role, model in roles.items():
        options = cfg.actors.of(role)
        unused = options.is_remote or (cfg.game.self_play and role is Role.ATTACKER)
        if model.peft.is_lora and options.restore_from_path is None and not unused:
            yield (
                f"model.peft.peft_scheme=lora: adapters need weights to stand on, set actors.{role}.restore_from_path"
            )


def sharing_problems(cfg: MagicConfig, roles: Mapping[Role, ModelConfig], command: str) -> Iterator[str]:
    """``actors.share_base=true`` where it cannot be."""
    if cfg.actors.share_base and command in ("train", "evaluate"):
        yield from (
            f"actors.share_base=true: {text}; or leave it null, which shares where it can be"
            for text in _obstacles(cfg, roles)
        )


def _obstacles(cfg: MagicConfig, roles: Mapping[Role, ModelConfig]) -> Iterator[str]:
    """Why two roles cannot share a base."""
    local = {role: model for role, model in roles.items() if cfg.actors.of(role).is_megatron}
    if cfg.game.self_play or len(local) < len(Role):
        yield "there is one local model (game.self_play, a remote role), which has nobody to share with"
        return
    for role, model in local.items():
        if not model.peft.is_lora:
            yield f"the {role} has no adapters, set actors.{role}.model.peft.peft_scheme=lora"
    attacker, defender = (cfg.actors.of(role).restore_from_path for role in Role)
    same = attacker == defender or (attacker and defender and os.path.realpath(attacker) == os.path.realpath(defender))
    if not same:
        yield (
            f"actors.attacker.restore_from_path={attacker} and actors.defender.restore_from_path={defender} are "
            "different weights: set them equal, and what the roles learned before in model.peft.restore_from_path"
        )
    plain = [replace(model, optim=OptimConfig(), peft=PeftConfig()) for model in local.values()]
    differing = [key for key in vars(plain[0]) if getattr(plain[0], key) != getattr(plain[1], key)]
    if differing:
        yield f"model.{differing[0]} differs between the roles: set it once under model"
