"""From judged episodes to an optimizer step: rows, log-probabilities, advantages, microbatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nemo_magic.actors.actor import Objective
from nemo_magic.actors.build import Player
from nemo_magic.actors.world import World
from nemo_magic.game.episode import Completion, Episode, Role
from nemo_magic.game.metrics import Ratios, Scored
from nemo_magic.rl.advantages import Advantages, rollout_advantages
from nemo_magic.rl.batch import MicroBatch, Row, scatter_back
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.loss import LossInputs, Normalizer, grpo_loss


def completion_of(episode: Episode, role: Role) -> Completion:
    """What ``role`` said in a single-turn episode."""
    turn = episode.turns[-1]
    completion = turn.attack if role is Role.ATTACKER else turn.defence
    if completion is None:
        raise ValueError(f"episode {episode.seed.id}: no model spoke for the {role}")
    return completion


class Learner:
    """The GRPO update of whichever player learns. Every rank brings its own share of whole groups."""

    def __init__(self, world: World, config: GRPOConfig) -> None:
        self._world = world
        self._config = config

    def rows(self, player: Player, episodes: Sequence[Episode]) -> list[Row]:
        """The role's sampled ids, with the log-probabilities that the loss will compare against.

        Needs no verdicts, so that the judge works meanwhile. With a single minibatch and β = 0 there is nothing to
        compute.
        """
        spoken = [completion_of(episode, player.role) for episode in episodes]
        rows = [Row(completion.prompt_ids, completion.response_ids) for completion in spoken]
        batches = None
        if self._config.minibatches > 1:
            batches = player.microbatches(rows, self._world)
            old = scatter_back(batches, player.actor.token_logprobs(batches), len(rows))
            rows = [replace(row, old_logprobs=values) for row, values in zip(rows, old, strict=True)]
        if self._config.kl_beta > 0:
            batches = batches or player.microbatches(rows, self._world)
            reference = scatter_back(batches, player.actor.reference_logprobs(batches), len(rows))
            rows = [replace(row, ref_logprobs=values) for row, values in zip(rows, reference, strict=True)]
        return rows

    def advantages(self, role: Role, scored: Sequence[Scored]) -> Advantages:
        """Group advantages of this rank's samples."""
        paid = [s.rewards.get(role) if s.rewards is not None else None for s in scored]
        return rollout_advantages(
            rewards=torch.tensor([0.0 if reward is None else sum(reward.values()) for reward in paid]),
            groups=torch.tensor([s.episode.group for s in scored]),
            paid=torch.tensor([reward is not None for reward in paid], dtype=torch.bool),
            truncated=torch.tensor([not completion_of(s.episode, role).finished for s in scored], dtype=torch.bool),
            config=self._config,
        )

    def update(
        self, player: Player, scored: Sequence[Scored], rows: Sequence[Row], found: Advantages
    ) -> dict[str, float]:
        """One pass over the rollout in ``grpo.minibatches`` optimizer steps. Returns global metrics."""
        groups = sorted({s.episode.group for s in scored})
        share = {group: i % self._config.minibatches for i, group in enumerate(groups)}
        ratios, norms = Ratios(), []
        for minibatch in range(self._config.minibatches):
            live = [
                replace(row, advantage=float(found.values[i]))
                for i, row in enumerate(rows)
                if found.live[i] and share[scored[i].episode.group] == minibatch
            ]
            norm = Normalizer(*self._world.total(sum(len(row.response_ids) for row in live), len(live)))
            ratios.add("live_rows", norm.sequences)
            if norm.tokens == 0:  # the same on every rank: nothing to learn from here
                continue
            batches = player.microbatches(live, self._world)

            def objective(logprobs: torch.Tensor, batch: MicroBatch, norm: Normalizer = norm) -> Objective:
                return grpo_objective(logprobs, batch, self._config, norm)

            metrics, grad_norm = player.learn(batches, objective)
            ratios.merge(metrics)
            norms.append(grad_norm)
        means = ratios.means()
        if norms:
            means["grad_norm"] = sum(norms) / len(norms)
            means["loss"] = means["policy_loss"] + self._config.kl_beta * means["kl"]
        means["lr"] = player.learning_rate
        return {f"train_optim/{name}": value for name, value in means.items()}


def grpo_objective(logprobs: torch.Tensor, batch: MicroBatch, config: GRPOConfig, norm: Normalizer) -> Objective:
    """``rl.loss.grpo_loss`` of a microbatch, on the device where its log-probabilities are."""
    device = logprobs.device
    outputs = grpo_loss(
        LossInputs(
            logprobs=logprobs,
            advantages=batch.advantages.to(device),
            mask=batch.mask.to(device),
            old_logprobs=None if batch.old_logprobs is None else batch.old_logprobs.to(device),
            ref_logprobs=None if batch.ref_logprobs is None else batch.ref_logprobs.to(device),
        ),
        config,
        norm,
    )
    return Objective(outputs.loss, outputs.metrics)
