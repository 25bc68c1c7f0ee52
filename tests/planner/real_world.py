"""One launched world: a real actor's parameters, optimizer, and what its forward pass keeps, for the plan's tests.

``torchrun --nproc-per-node N real_world.py FOLDER NAME BACKEND``. Not a test module: Megatron cannot be started twice
in one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from nemo_magic.actors.builder import build_policy, prepare_process
from nemo_magic.config import compose, role_model
from nemo_magic.game.episode import Role
from tests.planner.worlds import ROWS, TOKENS, WORLDS, overrides


def main(folder: Path, name: str, backend: str) -> None:
    tp, pp, recompute = WORLDS[name]
    weights = folder / f"base-{backend}-{name}"
    words = [
        f"backend={backend}", f"sandbox.folder={folder / 'sandbox'}", "judge.launch=false",
        "judge.urls=[http://127.0.0.1:9]", *overrides(tp, pp, recompute),
    ]  # fmt: skip
    scratch = [f"actors.{role.value}.restore_from_path=null" for role in Role]
    prepare_process(backend, "cpu")
    from megatron.core import parallel_state

    if recompute.startswith("lora"):
        save_base(weights, compose("magic_sandbox", [*words, *scratch, "model.peft.peft_scheme=none"]))
        scratch = [f"actors.{role.value}.restore_from_path={weights}" for role in Role]
    cfg = compose("magic_sandbox", [*words, *scratch])
    model = role_model(cfg, Role.DEFENDER)
    player = build_policy(Role.DEFENDER, model, cfg.actors.defender, cfg.trainer, 1, backend=backend)
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
    # Megatron-core's, which stay while the other role learns.
    buffers = player.actor.model.buffers if backend == "megatron" else []
    found = {
        "stage": stage,
        "parameters": sum(p.numel() for p in module.parameters()),
        "kept": sum(kept.values()),
        "output": list(output.shape),
        "vocabulary": player.actor.chat.size,
        "optimizer": sum(p.numel() for group in player.optimizer.param_groups for p in group["params"]),
        "gradient_bytes": sum(buffer.grad_data.nbytes for buffer in buffers),
    }
    ranks = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, found)
    if torch.distributed.get_rank() == 0:
        (folder / f"{backend}-{name}.json").write_text(json.dumps(ranks))


def save_base(folder: Path, cfg: Any) -> None:
    """What adapters stand on."""
    from nemo_magic.actors.weights import save_weights

    model, options = role_model(cfg, Role.DEFENDER), cfg.actors.defender
    policy = build_policy(Role.DEFENDER, model, options, cfg.trainer, 1, backend=cfg.backend)
    save_weights(policy.actor, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
