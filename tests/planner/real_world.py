"""One launched world: a real actor's parameters, optimizer, and what its forward pass keeps, for the plan's tests.

``torchrun --nproc-per-node N real_world.py FOLDER NAME TP PP RECOMPUTE``. Not a test module: Megatron cannot be started
twice in one process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from nemo_magic.compat import cpu

ROWS, TOKENS = 3, 40


def main(folder: Path, name: str, tp: int, pp: int, recompute: str) -> None:
    from megatron.core import parallel_state

    from nemo_magic.actors.builder import build_policy
    from nemo_magic.config import compose, role_model
    from nemo_magic.game.episode import Role

    overrides = [
        f"trainer.devices={os.environ['WORLD_SIZE']}", f"model.tensor_model_parallel_size={tp}",
        f"model.pipeline_model_parallel_size={pp}", "model.num_layers=4", "model.num_query_groups=2",
        "model.qkv_bias=true", "model.qk_layernorm=true", f"sandbox.folder={folder / 'sandbox'}", "judge.launch=false",
        "judge.urls=[http://127.0.0.1:9]", "actors.attacker.restore_from_path=null",
        "actors.defender.restore_from_path=null",
    ]  # fmt: skip
    if recompute.startswith("lora"):
        weights = folder / f"base-{name}"
        save_base(weights, compose("magic_sandbox", overrides))
        overrides += ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8"]
        overrides += [f"actors.{role.value}.restore_from_path={weights}" for role in Role]
    if recompute.endswith("full"):
        overrides += [
            "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
            "model.activations_checkpoint_num_layers=1",
        ]  # fmt: skip
    elif recompute == "selective":
        overrides += ["model.activations_checkpoint_granularity=selective"]
    cfg = compose("magic_sandbox", overrides)
    model = role_model(cfg, Role.DEFENDER)
    player = build_policy(Role.DEFENDER, model, cfg.actors.defender, cfg.trainer, 1)
    (module,) = player.actor.get_model_module_list()
    module.train()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    if stage > 0:
        module.set_input_tensor(torch.randn(TOKENS, ROWS, model.hidden_size, requires_grad=True))
    weights = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    # Kept tensors have to stay until they are counted: a storage that is freed lends its address to the next.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = module(torch.zeros(ROWS, TOKENS, dtype=torch.long), torch.arange(TOKENS).expand(ROWS, TOKENS), None)
    found = {
        "stage": stage,
        "parameters": sum(p.numel() for p in module.parameters()),
        "kept": sum(kept.values()),
        "output": list(output.shape),
        "vocabulary": player.actor.tokenizer.vocab_size,
        "optimizer": sum(p.numel() for group in player.optimizer.param_groups for p in group["params"]),
    }
    ranks = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, found)
    if torch.distributed.get_rank() == 0:
        (folder / f"{name}.json").write_text(json.dumps(ranks))


def save_base(folder: Path, cfg: Any) -> None:
    """What adapters stand on."""
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.config import role_model
    from nemo_magic.game.episode import Role

    policy = build_policy(Role.DEFENDER, role_model(cfg, Role.DEFENDER), cfg.actors.defender, cfg.trainer, 1)
    save_weights(policy.actor, folder)


if __name__ == "__main__":
    cpu.install(announce=False)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
