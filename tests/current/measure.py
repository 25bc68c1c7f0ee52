"""One rank that measures a backend: python -m tests.current.measure OUT OVERRIDES. Rank 0 writes OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from nemo_magic.actors.builder import build_policy, prepare_process
from nemo_magic.config import compose, role_model
from nemo_magic.game.episode import Role

LENGTHS = ((7, 5), (3, 9), (12, 4), (5, 1), (9, 9), (4, 2))
"""Prompt and response, in tokens."""


def main(out: Path, overrides: list[str]) -> None:
    cfg = compose("magic_sandbox", overrides)
    prepare_process(cfg.backend, "cpu")
    from nemo_magic.actors.distributed import World, destroy
    from nemo_magic.actors.generation import NativeGenerator
    from nemo_magic.actors.protocol import Objective
    from nemo_magic.actors.reference import keep_reference
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.rl.aggregation import Normalizer
    from nemo_magic.rl.batch import MicroBatch, Row, scatter_back
    from nemo_magic.rl.loss import nll_loss

    options = cfg.actors.defender
    policy = build_policy(
        Role.DEFENDER, role_model(cfg, Role.DEFENDER), options, cfg.trainer, cfg.seed, backend=cfg.backend
    )
    actor, world = policy.actor, World.current()
    keep_reference(actor)
    draws = torch.Generator().manual_seed(5)
    rows = [
        Row(*(tuple(torch.randint(5, actor.chat.size, (n,), generator=draws).tolist()) for n in lengths))
        for lengths in LENGTHS
    ]
    own = rows[world.dp_rank :: world.dp_size]

    def scores(which: Any) -> list[list[float]]:
        batches = policy.microbatches(own, world)
        mine = scatter_back(batches, which(batches), len(own))
        return [list(row) for part in zip(*world.gather_data_parallel(mine), strict=True) for row in part]

    def loss(logprobs: torch.Tensor, batch: MicroBatch) -> Objective:
        norm = Normalizer(sum(response for _, response in LENGTHS), len(LENGTHS))
        outputs = nll_loss(logprobs, batch.mask, norm)
        return Objective(outputs.loss, outputs.metrics)

    found: dict[str, Any] = {"before": scores(actor.token_logprobs)}
    if cfg.backend == "megatron":
        policy.optimizer.zero_grad()
        actor.accumulate(policy.microbatches(own, world), loss)
        found["gradients"] = [parameter.main_grad.clone() for parameter in actor.learning_parameters()]
    updates = [policy.learn(policy.microbatches(own, world), loss, observe=True) for _ in range(3)]
    found["updates"] = [(update.metrics, update.grad_norm) for update in updates]
    skipped = policy.learn(policy.microbatches(own, world), loss, skip_norm=1e-9)
    found["skipped"] = (skipped.made, skipped.grad_norm, policy.skipped_updates)
    found["after"], found["reference"] = scores(actor.token_logprobs), scores(actor.reference_logprobs)
    generator = NativeGenerator(cfg.generation)
    generator.load(actor)
    completions = generator.generate(
        [row.prompt_ids for row in rows], range(len(rows)), options.sampling_params, options.length_params
    )
    generator.close()
    found["completions"] = [(one.response_ids, one.logprobs) for one in completions]
    save_weights(actor, out.with_suffix(".weights"))
    if world.is_main:
        torch.save(found, out)
    destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
