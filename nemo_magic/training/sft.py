"""Phase 1: supervised warm-up of one role, loss on completion tokens only (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from nemo_magic.actors.builder import build_policy
from nemo_magic.actors.distributed import World
from nemo_magic.actors.errors import NotFiniteError
from nemo_magic.actors.protocol import LossFunction, Metrics, Objective
from nemo_magic.actors.tokenizer import ChatTokenizer
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
from nemo_magic.runtime.checkpoint_paths import SFT_WEIGHTS, STATE, remove_checkpoints
from nemo_magic.runtime.errors import DivergedError
from nemo_magic.runtime.preemption import Preemption
from nemo_magic.runtime.resume import Resume
from nemo_magic.runtime.timers import Timers
from nemo_magic.training.run import Run


def run_sft(cfg: MagicConfig, resume: Resume) -> None:
    """Warm up ``sft.role`` on ``sft.pool`` and save its weights under the run's folder.

    Until then it has checkpoints as a game has; they are removed once the weights are durable.

    Raises:
        DataError: the pool cannot be used, or all its rows are longer than the model.
        DivergedError: an update was not finite, or left weights that compute nothing finite.
        Preempted: the run was asked to end; it has saved and goes on when it is started again.
        CheckpointError: a checkpoint cannot be written, or not be gone on from.
    """
    WarmUp(cfg).run_to_end(resume)


class WarmUp:
    """Supervised learning of one role. ``done``: how many steps are; everything else follows from the configuration."""

    def __init__(self, cfg: MagicConfig) -> None:
        self.cfg, self.role, self.done = cfg, Role(cfg.sft.model_role), 0
        model = role_model(cfg, self.role, steps=cfg.sft.max_steps)
        self.metrics: dict[str, float] = {}
        self.policy = build_policy(
            self.role, model, cfg.actors.of(self.role), cfg.trainer, cfg.seed, backend=cfg.backend
        )
        self.world = World.current()
        first = Role.ATTACKER if cfg.sft.role == "both" else self.role
        pools = [self._pool(cfg.sft.pool, "sft.pool", first)]
        if cfg.sft.role == "both":
            pools.append(self._pool(cfg.sft.defender_pool, "sft.defender_pool", Role.DEFENDER))
        held_out = self._pool(cfg.sft.val_pool, "sft.val_pool", first) if cfg.sft.val_pool else []
        self.held_out = held_out[: cfg.sft.num_val_samples]
        self.pools = [(rows, EpochSampler(len(rows), cfg.sft.batch_size // len(pools), cfg.seed)) for rows in pools]
        self.timers = Timers()
        preemption = Preemption(self.world, cfg.exp_manager.max_seconds)
        self.run = Run(cfg, self.world, self.timers, cfg.sft.max_steps, preemption)

    def run_to_end(self, resume: Resume) -> None:
        """Learn from the beginning, or from where a checkpoint left off, and save the weights."""
        resumed = self.restore(resume)
        with ExitStack() as logging, self.run.watch(logging, self.done if resumed else None, lambda: self.done + 1):
            try:
                self.learn()
            except (FloatingPointError, NotFiniteError) as error:
                self.run.checkpoints.finish()
                rate = f"actors.{self.role}.model.optim.lr={self.policy.actor.cfg.optim.lr:g}"
                raise DivergedError(
                    f"after {self.done} steps: {error}; lower {rate}, and begin anew (--resume never) or at an earlier "
                    "checkpoint (--resume FOLDER)"
                ) from error
            self.run.checkpoints.finish()
            save_weights(self.policy.actor, self.run.folder / SFT_WEIGHTS)
            if self.world.is_main:
                remove_checkpoints(self.run.checkpoints.folder)
            self.run.note(f"{self.role} warmed up: weights in {self.run.folder / SFT_WEIGHTS}")

    def learn(self) -> None:
        """All steps that are not done. Raises FloatingPointError or NotFiniteError where the role has diverged."""
        sft, total = self.cfg.sft, self.run.total_steps
        while self.done < total:
            self.run.before_step(self.done, self.save)
            with self.timers("step"):
                self.metrics = self.update(self.batch(self.done))
            self.done += 1
            if self.held_out and (self.done % sft.val_check_interval == 0 or self.done == total):
                with self.timers("validate"):
                    self.metrics["val_optim/loss"] = self.measure(self.held_out)
            record = StepRecord(self.done, "sft", 0, self.role, self.metrics | self.timers.drain())
            self.run.logger.record(record)
        self.measure(self.batch(total - 1))  # the last update may have left what computes nothing finite

    def batch(self, step: int) -> list[Row]:
        """The rows of a step, of all ranks."""
        return [rows[i] for rows, sampler in self.pools for i in sampler.batch(step)]

    def update(self, rows: Sequence[Row]) -> dict[str, float]:
        """One update on ``rows``, which all ranks share. Raises FloatingPointError where its gradient is not finite."""
        own = rows[self.world.dp_rank :: self.world.dp_size]
        norm = Normalizer(*self.world.sum_data_parallel(sum(len(row.response_ids) for row in own), len(own)))
        update = self.policy.learn(self.policy.microbatches(own, self.world), _completion_loss(norm))
        if not update.made:
            raise FloatingPointError(f"the {self.role}'s gradient norm is {update.grad_norm}")
        return {
            "train_optim/loss": _mean(update.metrics),
            "train_optim/grad_norm": update.grad_norm,
            "train_optim/lr": self.policy.learning_rate,
        }

    def measure(self, rows: Sequence[Row]) -> float:
        """Mean negative log-likelihood per completion token, in nats, without learning."""
        batches = self.policy.microbatches(rows[self.world.dp_rank :: self.world.dp_size], self.world)
        parts = [
            nll_loss(logprobs, batch.mask.to(logprobs.device), Normalizer(1.0, 1.0)).metrics["nll"]
            for batch, logprobs in zip(batches, self.policy.actor.token_logprobs(batches), strict=True)
        ]
        total, count = self.world.sum_data_parallel(sum(float(s) for s, _ in parts), sum(float(c) for _, c in parts))
        return total / count

    def save(self, wait: bool) -> None:
        """Commit the warm-up as it is between two steps."""
        state = {"command": "sft", "step": self.done, "config": masked(self.cfg)}
        self.run.checkpoints.save(self.done, {str(self.role): self.policy}, {STATE: state}, self.metrics, wait)

    def restore(self, resume: Resume) -> bool:
        """Take up the warm-up where a checkpoint left it; whether there is one."""
        path = self.run.checkpoint_of(resume)
        if path is None:
            return False
        self.done = int(self.run.checkpoints.restore(path, {str(self.role): self.policy})["step"])
        self.run.has_resumed(resume, path, self.done, self.save)
        return True

    def _pool(self, path: str | None, key: str, role: Role) -> list[Row]:
        """The rows of a pool that teach ``role``."""
        if path is None:
            raise DataError(f"{key} is not set: name a jsonl or parquet file of demonstrations")
        chat, limit = self.policy.actor.chat, self.policy.actor.cfg.encoder_seq_length
        neutralised = chat.neutralised
        rows, report = attack_rows(self.cfg, path, key, chat) if role is Role.ATTACKER else chat_rows(path, key, chat)
        fitting = [row for row in rows if len(row) <= limit]
        report.drop(f"longer than model.encoder_seq_length={limit}", len(rows) - len(fitting))
        if not fitting:
            raise DataError(f"{key}: no row of {path} fits the model; {report}")
        if self.world.is_main:
            print(f"{path}: {report}", flush=True)
            if count := chat.neutralised - neutralised:
                print(f"{path}: control tokens that its texts spelled, read as text: {count}", flush=True)
        return fitting


def attack_rows(cfg: MagicConfig, path: str, key: str, chat: ChatTokenizer) -> tuple[list[Row], DropReport]:
    """The attack pool as prompts and tagged completions."""
    pool, report = read_attack_pool(path, key)
    return [
        Row(
            chat.prompt_ids(attacker_messages(cfg.game.prompts, row.seed, row.history, cfg.game.max_turns)),
            chat.completion_ids(tags.tagged(row.reasoning, row.rewrite)),
        )
        for row in pool
    ], report


def chat_rows(path: str, key: str, chat: ChatTokenizer) -> tuple[list[Row], DropReport]:
    """A chat pool as prompts and answers."""
    pool, report = read_chat_pool(path, key)
    return [Row(chat.prompt_ids(row.messages), chat.completion_ids(row.response)) for row in pool], report


def _completion_loss(norm: Normalizer) -> LossFunction:
    def loss(logprobs: torch.Tensor, batch: MicroBatch) -> Objective:
        outputs = nll_loss(logprobs, batch.mask.to(logprobs.device), norm)
        return Objective(outputs.loss, outputs.metrics)

    return loss


def _mean(metrics: Metrics) -> float:
    total, count = metrics["nll"]
    return total / count
