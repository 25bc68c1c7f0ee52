"""One rank of an actor of backend=megatron on converted weights: python -m tests.current.families FOLDER NAME TP PP.

What it computes is written to FOLDER/NAME: logits; what it samples, beside the forward pass; its gradients, as weights
that nemo-to-hf reads; one update, and a second one after the checkpoint that NAME=tp1 wrote.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from nemo_magic.actors.builder import prepare_process
from tests.convert import convert_world
from tests.convert.tiny_hf import MEGATRON_ONLY

SAVES = "tp1"
KEYS = ["backend=megatron", "model.optim.lr=1e-3"]


def main(folder: Path, name: str, tp: int, pp: int) -> None:
    prepare_process("megatron", "cpu")
    from nemo_magic.actors.distributed import World, destroy
    from nemo_magic.actors.weights import load_policies

    out, tokens = folder / name, torch.load(folder / "tokens.pt")
    out.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    for checkpoint in MEGATRON_ONLY:
        nemo = folder / "nemo" / checkpoint
        policy, cfg = convert_world.start(folder, checkpoint, nemo, tp, pp, KEYS)
        convert_world.save(convert_world.logits_of(policy.actor, tokens), out / f"{checkpoint}.pt")
        decoded, before = convert_world.decoded(policy.actor, cfg), policy.actor.host_state()
        found[checkpoint] = {"decoded": decoded, "first": learn(policy, tokens)}
        if name == SAVES:
            save_state(policy, folder / f"{checkpoint}.state")
        policy.actor.put_host_state(before)
        save_gradients(policy, tokens, out / f"{checkpoint}.gradients", nemo)
        policy, _ = convert_world.start(folder, checkpoint, nemo, tp, pp, KEYS)
        load_policies({"defender": policy}, folder / f"{checkpoint}.state")
        found[checkpoint]["second"] = learn(policy, tokens)
    words = [*KEYS, "model.peft.lora_tuning.target_modules=[attention]", *convert_world.adapters(folder)]
    adapted, _ = convert_world.start(folder, "qwen3_moe", folder / "nemo" / "qwen3_moe", tp, pp, words)
    convert_world.save(convert_world.logits_of(adapted.actor, tokens), out / "adapted.pt")
    found["adapted"] = learn(adapted, tokens)
    if World.current().is_main:
        (out / "found.json").write_text(json.dumps(found))
    destroy()


def rows_of(policy: Any, tokens: torch.Tensor) -> tuple[list[Any], Any]:
    """Microbatches of one row each, and the mean negative log-likelihood of all but the first token."""
    from nemo_magic.actors.protocol import Objective
    from nemo_magic.rl.batch import Row, microbatches

    rows = [Row(tuple(row[:1].tolist()), tuple(row[1:].tolist())) for row in tokens]
    trained = sum(len(row.response_ids) for row in rows)

    def loss(logprobs: torch.Tensor, batch: Any) -> Objective:
        return Objective(-(logprobs * batch.mask).sum() / trained, {})

    return microbatches(rows, 1, policy.actor.chat.pad_id), loss


def learn(policy: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """One update: its gradient's norm, and log-probabilities after it."""
    batches, loss = rows_of(policy, tokens)
    update = policy.learn(batches, loss)
    after = [part.tolist() for part in policy.actor.token_logprobs(batches)]
    return {"made": update.made, "norm": update.grad_norm, "after": after}


def save_state(policy: Any, target: Path) -> None:
    """Weights and optimizer, as a run saves them."""
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.saving import write_in_a_fork
    from nemo_magic.actors.weights import save_policies

    if World.current().is_main:
        target.mkdir()
    torch.distributed.barrier()
    request = save_policies({"defender": policy}, target)
    write_in_a_fork(request)
    request.finalize()


def save_gradients(policy: Any, tokens: torch.Tensor, target: Path, nemo: Path) -> None:
    """The gradients, as the weights of a converted folder. The actor is of no use afterwards."""
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.weights import save_weights

    batches, loss = rows_of(policy, tokens)
    policy.optimizer.zero_grad()
    policy.actor.accumulate(batches, loss)
    with torch.no_grad():
        for parameter in policy.actor.learning_parameters():
            parameter.copy_(parameter.main_grad)
    save_weights(policy.actor, target)
    if World.current().is_main:
        shutil.copy(nemo / "model.yaml", target)
        for beside in ("tokenizer", "hf"):
            shutil.copytree(nemo / beside, target / beside)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
