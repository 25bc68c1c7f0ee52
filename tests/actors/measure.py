"""One launched world: builds both actors, measures what the parity tests compare, writes it down.

``torchrun --nproc-per-node N measure.py FOLDER NAME TP PP``; the world named ``tp1`` also makes the weights that all
others load. Not a test module: Megatron cannot be started twice in one process.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_magic.compat import cpu


def main(folder: Path, name: str, tp: int, pp: int) -> None:
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.config import compose, role_model
    from nemo_magic.game.episode import Role

    world_size = int(os.environ["WORLD_SIZE"])
    weights = {role: folder / "weights" / role.value for role in Role}
    nemo_file = folder / "attacker.nemo"
    overrides = [
        f"trainer.devices={world_size}",
        f"model.tensor_model_parallel_size={tp}",
        f"model.pipeline_model_parallel_size={pp}",
        "model.num_layers=4",
        "model.micro_batch_size=3",
        f"sandbox.folder={folder / 'sandbox'}",
        "model.init_method_std=0.06",  # far from uniform, so that differences would show
        "grpo.kl_beta=0.1",
        "judge.launch=false",
        "judge.urls=[http://127.0.0.1:9]",
    ]
    for role in Role:
        path = "null" if name == "tp1" else weights[role]
        if name in ("tp2", "pp2") and role is Role.ATTACKER:
            path = nemo_file  # the same weights as NeMo itself writes them
        overrides.append(f"actors.{role.value}.restore_from_path={path}")
        overrides.append(f"actors.{role.value}.sampling_params.temperature=0.7")
    cfg = compose("magic_sandbox", overrides)
    players = {
        role: build_policy(role, role_model(cfg, role), cfg.actors.of(role), cfg.trainer, 11 + i, keep_reference=True)
        for i, role in enumerate(Role)
    }
    world = World.current()
    if name == "tp1":
        for role in Role:
            save_weights(players[role].actor, weights[role])
        players[Role.ATTACKER].actor.save_to(str(nemo_file))

    found: dict[str, Any] = {"roles_differ": _roles_differ(players)}
    found |= _scores(players[Role.DEFENDER])
    found |= _generation(players[Role.ATTACKER], players[Role.DEFENDER], cfg)
    found |= _loss_and_gradients(players[Role.DEFENDER], world, cfg, folder / "gradients" / name)
    found["one_rank_learns"] = _one_rank_learns(players[Role.ATTACKER], world, cfg)
    found |= _learning(players[Role.ATTACKER], world, cfg)
    found["past"] = _past_selves(players[Role.DEFENDER], folder / "snapshots" / name)
    found["no_room"] = _no_room(players, world, folder / "full" / name)
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, found)
    if world.is_main:
        (folder / f"{name}.json").write_text(json.dumps(everyone))


def rows() -> list[Any]:
    """Twelve rows in four groups of three: unequal lengths, made-up advantages, one group without spread (index 2)."""
    from nemo_magic.rl.batch import Row

    draw = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (), generator=draw))
        return tuple(torch.randint(4, 40, (size,), generator=draw).tolist())

    made = []
    for i in range(12):
        prompt, response = ids(3, 9), ids(1, 12)
        old = tuple((-3 - torch.rand(len(response), generator=draw)).tolist())
        advantage = 0.0 if i // 3 == 2 else float(torch.randn((), generator=draw))
        made.append(Row(prompt, response, advantage, old_logprobs=old))
    return made


def _roles_differ(players: Any) -> bool:
    mine, other = (list(p.actor.parameters()) for p in players.values())
    return any(not torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def _scores(player: Any) -> dict[str, Any]:
    from nemo_magic.rl.batch import microbatches, scatter_back

    batches = microbatches(rows(), 3, player.actor.chat.pad_id)
    mine = scatter_back(batches, player.actor.token_logprobs(batches), 12)
    reference = scatter_back(batches, player.actor.reference_logprobs(batches), 12)
    return {"logprobs": mine, "reference_logprobs": reference, "ranked": _ranked(player.actor, batches)}


def _ranked(actor: Any, batches: Any) -> dict[str, Any]:
    """The likeliest tokens beside the log-probabilities of the training pass: where a token of the response is among
    them it has to be the same number, and the training pass counts nothing but responses."""
    own = actor.token_logprobs(batches)
    ranked = actor.ranked_logprobs(batches, 5)
    among = differing = 0
    for batch, mine, (again, values, ids) in zip(batches, own, ranked, strict=True):
        mask, mine = batch.mask, mine.cpu()
        assert not mine[:, : batch.first].any()
        differing += int((~torch.isclose(mine, again.cpu(), rtol=0, atol=1e-5))[mask].sum())
        same = (ids[:, :-1].cpu() == batch.tokens[:, 1:, None]) & mask[..., None]
        among += int(same.sum())
        differing += int((~torch.isclose(values[:, :-1].cpu(), mine[..., None], rtol=0, atol=1e-5))[same].sum())
    falling = all(bool((values[..., :-1] >= values[..., 1:]).all()) for _, values, _ in ranked)
    known = all(bool((ids < actor.chat.size).all()) for _, _, ids in ranked)
    return {
        "among": among,
        "differing": differing,
        "falling": falling,
        "known": known,
        "ids": [ids.tolist() for _, _, ids in ranked],
    }


def _generation(attacker: Any, defender: Any, cfg: Any) -> dict[str, Any]:
    """Decode; score the same ids with a full forward; check neighbours, staleness and stop strings."""
    from nemo_magic.actors.generation import NativeGenerator, StaleWeightsError
    from nemo_magic.rl.batch import Row, microbatches, scatter_back

    options = cfg.actors.attacker
    prompts = [row.prompt_ids for row in rows()]
    seeds = list(range(100, 112))
    generator = NativeGenerator(replace(cfg.generation, max_prompt_spread=8))
    generator.load(attacker.actor)
    said = generator.generate(prompts, seeds, options.sampling_params, options.length_params)
    alone = generator.generate(prompts[5:6], seeds[5:6], options.sampling_params, options.length_params)
    greedy = replace(options.sampling_params, use_greedy=True)
    best = generator.generate(prompts, seeds, greedy, options.length_params)
    # Two words that row 0 says anyway, after its first: a stop of several tokens. One word: a stop that is a single id.
    words = said[0].text.split()
    phrase = replace(options.sampling_params, end_strings=[" ".join(words[1:3])])
    stopped = generator.generate(prompts[:1], seeds[:1], phrase, options.length_params)[0]
    word = replace(options.sampling_params, end_strings=words[1:5])
    worded = generator.generate(prompts, seeds, word, options.length_params)
    generator.release()

    batches = microbatches([Row(c.prompt_ids, c.response_ids) for c in said], 3, attacker.actor.chat.pad_id)
    forward = scatter_back(batches, attacker.actor.token_logprobs(batches), 12)
    refused = []
    generator.load(defender.actor)
    defender.actor.weights_version += 1
    for use in (generator, NativeGenerator(cfg.generation)):
        try:
            use.generate(prompts[:1], seeds[:1], options.sampling_params, options.length_params)
        except StaleWeightsError as error:
            refused.append(str(error))
    generator.release()
    return {
        "ids": [c.response_ids for c in said],
        "finished": [c.finished for c in said],
        "generated_logprobs": [c.logprobs for c in said],
        "forward_logprobs": forward,
        "alone": alone[0].response_ids,
        "greedy": [c.response_ids for c in best],
        "words": words,
        "stopped": [stopped.text, stopped.finished, len(stopped.response_ids)],
        "worded": [[c.text.split(), c.finished] for c in worded],
        "stale_refused": refused,
    }


def _loss_and_gradients(player: Any, world: Any, cfg: Any, target: Path) -> dict[str, Any]:
    """One backward pass, no step; the gradients are saved in the weights' place, so that shards are put together."""
    from nemo_magic.actors.weights import save_weights
    from nemo_magic.rl.aggregation import Normalizer
    from nemo_magic.rl.batch import microbatches, scatter_back
    from nemo_magic.training.trainer import grpo_objective

    actor, everything = player.actor, rows()
    batches = microbatches(everything, 3, actor.chat.pad_id)
    # A reference that is not the policy itself, or the KL term would be zero.
    reference = scatter_back(batches, actor.token_logprobs(batches), 12)
    everything = [
        replace(row, ref_logprobs=tuple(x + 0.3 * (-1) ** i for i, x in enumerate(values)))
        for row, values in zip(everything, reference, strict=True)
    ]
    live = [i for i in range(12) if i // 3 != 2 and (i // 3) % world.dp_size == world.dp_rank]
    mine = [everything[i] for i in live]
    norm = Normalizer(*world.sum_data_parallel(sum(len(r.response_ids) for r in mine), len(mine)))
    count = world.max_data_parallel(-(-len(mine) // 3))
    own = microbatches(mine, 3, actor.chat.pad_id, count)
    player.optimizer.zero_grad()
    config = replace(cfg.grpo, entropy_bonus=0.05)
    metrics = actor.accumulate(own, lambda lp, b, h: grpo_objective(lp, b, config, norm, h), with_entropy=True)
    norms = [float(p.grad.norm()) for p in actor.parameters() if p.grad is not None]
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    save_weights(actor, target)
    return {
        "loss": metrics["policy_loss"][0] / metrics["policy_loss"][1]
        + cfg.grpo.kl_beta * metrics["kl"][0] / metrics["kl"][1],
        "counts": [norm.tokens, norm.sequences],
        "largest_gradient": max(norms),
    }


def _one_rank_learns(player: Any, world: Any, cfg: Any) -> dict[str, Any]:
    """All that can be learnt from is with the first data-parallel rank; the others bring dummies."""
    from nemo_magic.rl.aggregation import Normalizer
    from nemo_magic.training.trainer import grpo_objective

    def full(row: Any) -> Any:
        zeros = (0.0,) * len(row.response_ids)
        return replace(row, old_logprobs=zeros, ref_logprobs=zeros, rollout_logprobs=zeros)

    live = [full(row) for row in rows()] if world.dp_rank == 0 else []
    norm = Normalizer(*world.sum_data_parallel(sum(len(row.response_ids) for row in live), len(live)))
    config = replace(cfg.grpo, kl_beta=0.1, tis_clip=2.0)
    player.optimizer.zero_grad()
    batches = player.microbatches(live, world)
    metrics = player.actor.accumulate(batches, lambda lp, b: grpo_objective(lp, b, config, norm))
    player.optimizer.zero_grad()
    return {"tokens": norm.tokens, "counts": {name: count for name, (_, count) in metrics.items()}}


def _learning(player: Any, world: Any, cfg: Any) -> dict[str, Any]:
    """Dead groups move nothing; live ones do."""
    from nemo_magic.rl.aggregation import Normalizer
    from nemo_magic.rl.batch import microbatches
    from nemo_magic.training.trainer import grpo_objective

    actor = player.actor
    dead = [replace(row, ref_logprobs=(0.0,) * len(row.response_ids)) for row in rows()[6:9]]
    config = replace(cfg.grpo, kl_beta=0.0)
    player.optimizer.zero_grad()
    batches = microbatches([], 3, actor.chat.pad_id, 2)
    actor.accumulate(batches, lambda lp, b: grpo_objective(lp, b, config, Normalizer(0.0, 0.0)))
    dummy = max(float(p.grad.abs().max()) for p in actor.parameters() if p.grad is not None)
    player.optimizer.zero_grad()
    own = microbatches(dead, 3, actor.chat.pad_id)
    actor.accumulate(own, lambda lp, b: grpo_objective(lp, b, config, Normalizer(10.0, 3.0)))
    flat = max(float(p.grad.abs().max()) for p in actor.parameters() if p.grad is not None)
    before, version = [p.detach().clone() for p in actor.parameters()], actor.weights_version
    live = microbatches(rows(), 3, actor.chat.pad_id)

    def objective(scale: float) -> Any:
        def loss(logprobs: torch.Tensor, batch: Any) -> Any:
            share = grpo_objective(logprobs, batch, config, Normalizer(50.0, 12.0))
            return replace(share, loss=share.loss * scale)

        return loss

    broken = [player.learn(live, objective(float("nan"))), player.learn(live, objective(1.0), skip_norm=1e-9)]
    skipped = {
        "made": [update.made for update in broken],
        "finite": [math.isfinite(update.grad_norm) for update in broken],
        "in_a_row": player.skipped_updates,
        "moved": any(not torch.equal(a, b) for a, b in zip(before, actor.parameters(), strict=True)),
        "version_step": actor.weights_version - version,
    }
    norm = player.learn(live, objective(1.0)).grad_norm
    moved = any(not torch.equal(a, b) for a, b in zip(before, actor.parameters(), strict=True))
    return {
        "dummy_gradient": dummy,
        "zero_advantage_gradient": flat,
        "moved": moved,
        "version_step": actor.weights_version - version,
        "grad_norm": norm,
        "skipped": skipped | {"in_a_row_after": player.skipped_updates},
    }


def _no_room(players: Any, world: Any, folder: Path) -> dict[str, Any]:
    """A disk with a few bytes left: refused before anything is written, on every rank."""
    import shutil
    from types import SimpleNamespace
    from unittest import mock

    from nemo_magic.config.experiment import CheckpointConfig
    from nemo_magic.runtime.checkpoint_manager import CheckpointManager
    from nemo_magic.runtime.errors import CheckpointError

    checkpoints = CheckpointManager(world, folder, CheckpointConfig(), print)
    named = {str(role): player for role, player in players.items()}
    with mock.patch.object(shutil, "disk_usage", return_value=SimpleNamespace(free=3_000_000)):
        try:
            checkpoints.save(4, named, {"state.json": {}}, {})
        except CheckpointError as error:
            return {"said": str(error), "left": [path.name for path in (folder / "checkpoints").iterdir()]}
    return {"said": "", "left": []}


def _past_selves(player: Any, folder: Path) -> dict[str, Any]:
    """A snapshot is worn, and what was there before comes back, bit for bit."""
    from nemo_magic.actors.snapshots import SnapshotCache, save_snapshot

    actor = player.actor

    def present() -> list[torch.Tensor]:
        return [p.detach().clone() for p in actor.parameters()]

    past = present()
    snapshot = save_snapshot(actor, folder)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(1.0)
    now, version = present(), actor.weights_version
    with SnapshotCache().use_snapshot(player, snapshot.folder):
        while_worn = present()
    return {
        "worn": all(map(torch.equal, past, while_worn)),
        "own": all(map(torch.equal, now, present())),
        "noticed": actor.weights_version > version,
    }


if __name__ == "__main__":
    cpu.install()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
