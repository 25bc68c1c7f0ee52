"""Phase 1: supervised warm-up of one role, loss on completion tokens only (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_magic.actors.builder import build_policy
from nemo_magic.actors.distributed import World
from nemo_magic.actors.protocol import LossFunction, Metrics, Objective
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.actors.weights import save_weights
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.config.secrets import masked
from nemo_magic.data.errors import DataError
from nemo_magic.data.pools import read_attack_pool, read_chat_pool
from nemo_magic.data.seeds import EpochSampler
from nemo_magic.data.tables import DropReport
from nemo_magic.game import tags
from nemo_magic.game.episode import Role
from nemo_magic.game.prompts import attacker_messages
from nemo_magic.report.records import StepRecord
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.batch import MicroBatch, Row
from nemo_magic.rl.loss import nll_loss
from nemo_magic.runtime.checkpoint_paths import SFT_WEIGHTS
from nemo_magic.runtime.errors import DivergedError
from nemo_magic.runtime.timers import Timers
from nemo_magic.tracking.metric_logger import MetricLogger


def run_sft(cfg: MagicConfig) -> None:
    """Warm up ``sft.role`` on ``sft.pool`` and save its weights under the run's folder.

    Raises:
        DataError: the pool cannot be used, or all its rows are longer than the model.
    """
    role = Role(cfg.sft.model_role)
    target = Path(cfg.exp_manager.explicit_log_dir) / SFT_WEIGHTS
    model = role_model(cfg, role, steps=cfg.sft.max_steps)
    policy = build_policy(role, model, cfg.actors.of(role), cfg.trainer, cfg.seed, backend=cfg.backend)
    world = World.current()
    first = Role.ATTACKER if cfg.sft.role == "both" else role
    pools = [_pool(cfg, cfg.sft.pool, "sft.pool", first, policy, world)]
    if cfg.sft.role == "both":
        pools.append(_pool(cfg, cfg.sft.defender_pool, "sft.defender_pool", Role.DEFENDER, policy, world))
    held_out = _pool(cfg, cfg.sft.val_pool, "sft.val_pool", first, policy, world) if cfg.sft.val_pool else []
    samplers = [EpochSampler(len(rows), cfg.sft.batch_size // len(pools), cfg.seed) for rows in pools]
    timers = Timers()
    with MetricLogger(
        cfg.exp_manager, is_main=world.is_main, total_steps=cfg.sft.max_steps, title=cfg.name, config=masked(cfg)
    ) as logger:
        for step in range(cfg.sft.max_steps):
            with timers("step"):
                batch = [rows[i] for rows, sampler in zip(pools, samplers, strict=True) for i in sampler.batch(step)]
                metrics = _learn(policy, world, batch[world.dp_rank :: world.dp_size])
            done = step + 1
            if held_out and (done % cfg.sft.val_check_interval == 0 or done == cfg.sft.max_steps):
                metrics["val_optim/loss"] = _measure(policy, world, held_out[: cfg.sft.num_val_samples])
            logger.record(StepRecord(done, "sft", 0, role, metrics | timers.drain()))
        _measure(policy, world, batch)  # raises where the last update left a model that computes nothing finite
    save_weights(policy.actor, target)
    if world.is_main:
        print(f"{role} warmed up: weights in {target}", flush=True)


def attack_rows(cfg: MagicConfig, path: str, chat: ChatTokenizer) -> tuple[list[Row], DropReport]:
    """The attack pool as prompts and tagged completions."""
    pool, report = read_attack_pool(path)
    return [
        Row(
            chat.prompt_ids(attacker_messages(cfg.game.prompts, row.seed, row.history, cfg.game.max_turns)),
            chat.completion_ids(tags.tagged(row.reasoning, row.rewrite)),
        )
        for row in pool
    ], report


def chat_rows(path: str, chat: ChatTokenizer) -> tuple[list[Row], DropReport]:
    """A chat pool as prompts and answers."""
    pool, report = read_chat_pool(path)
    return [Row(chat.prompt_ids(row.messages), chat.completion_ids(row.response)) for row in pool], report


def _pool(cfg: MagicConfig, path: str | None, key: str, role: Role, policy: TrainablePolicy, world: World) -> list[Row]:
    """The rows of a pool that teach ``role``."""
    if path is None:
        raise DataError(f"{key} is not set: name a jsonl or parquet file of demonstrations")
    chat, limit = policy.actor.chat, policy.actor.cfg.encoder_seq_length
    neutralised = chat.neutralised
    rows, report = attack_rows(cfg, path, chat) if role is Role.ATTACKER else chat_rows(path, chat)
    fitting = [row for row in rows if len(row) <= limit]
    report.drop(f"longer than model.encoder_seq_length={limit}", len(rows) - len(fitting))
    if not fitting:
        raise DataError(f"{key}: no row of {path} fits the model; {report}")
    if world.is_main:
        print(f"{path}: {report}", flush=True)
        if count := chat.neutralised - neutralised:
            print(f"{path}: control tokens that its texts spelled, read as text: {count}", flush=True)
    return fitting


def _learn(policy: TrainablePolicy, world: World, rows: Sequence[Row]) -> dict[str, float]:
    norm = Normalizer(*world.sum_data_parallel(sum(len(row.response_ids) for row in rows), len(rows)))
    try:
        update = policy.learn(policy.microbatches(rows, world), _completion_loss(norm))
    except FloatingPointError as error:
        raise DivergedError(f"sft: {error}: lower model.optim.lr") from error
    if not update.made:
        raise DivergedError(f"sft: the {policy.role}'s gradient norm is {update.grad_norm}: lower model.optim.lr")
    return {
        "train_optim/loss": _mean(update.metrics),
        "train_optim/grad_norm": update.grad_norm,
        "train_optim/lr": policy.learning_rate,
    }


def _measure(policy: TrainablePolicy, world: World, rows: Sequence[Row]) -> float:
    """Mean negative log-likelihood per completion token, in nats, without learning."""
    batches = policy.microbatches(rows[world.dp_rank :: world.dp_size], world)
    parts = [
        nll_loss(logprobs, batch.mask.to(logprobs.device), Normalizer(1.0, 1.0)).metrics["nll"]
        for batch, logprobs in zip(batches, policy.actor.token_logprobs(batches), strict=True)
    ]
    total, count = world.sum_data_parallel(sum(float(s) for s, _ in parts), sum(float(c) for _, c in parts))
    return total / count


def _completion_loss(norm: Normalizer) -> LossFunction:
    def loss(logprobs: torch.Tensor, batch: MicroBatch) -> Objective:
        outputs = nll_loss(logprobs, batch.mask.to(logprobs.device), norm)
        return Objective(outputs.loss, outputs.metrics)

    return loss


def _mean(metrics: Metrics) -> float:
    total, count = metrics["nll"]
    return total / count
