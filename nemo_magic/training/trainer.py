"""From scored episodes to optimizer steps: rows, log-probabilities, advantages, microbatches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nemo_magic.actors.distributed import World
from nemo_magic.actors.errors import NotFiniteError
from nemo_magic.actors.protocol import Objective
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.game.episode import Episode, Role
from nemo_magic.game.metrics import Ratios, Scored
from nemo_magic.rl.advantages import AdvantageInputs, Advantages, rollout_advantages
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.batch import MicroBatch, Row, scatter_back
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.loss import LossInputs, grpo_loss
from nemo_magic.rl.role_baseline import RoleBaselines
from nemo_magic.runtime.errors import DivergedError
from nemo_magic.training.credit import episode_rewards, less_kl, next_baselines


@dataclass(frozen=True)
class RolloutBatch:
    """The sampled ids of ``role`` in a list of episodes: a row per message, and the index of its episode."""

    role: Role
    rows: list[Row]
    episode_of: list[int]

    def joined(self, more: RolloutBatch, episodes: int) -> RolloutBatch:
        """This batch, of that many ``episodes``, and ``more`` rows of the episodes after them."""
        later = [episodes + i for i in more.episode_of]
        return RolloutBatch(self.role, [*self.rows, *more.rows], [*self.episode_of, *later])


class Trainer:
    """The GRPO update of whichever policy learns. Every rank brings its own share of whole groups.

    ``baselines``: the roles' own, which move with every update where ``grpo.baseline=role``.
    """

    def __init__(self, world: World, config: GRPOConfig) -> None:
        self._world = world
        self._config = config
        self.baselines = RoleBaselines()

    def prepare(self, policy: TrainablePolicy, role: Role, episodes: Sequence[Episode]) -> RolloutBatch:
        """The messages of ``role``, all turns, with the log-probabilities that the loss will compare against.

        Needs no rewards, so that the judge works meanwhile. With a single minibatch and β = 0 there is nothing to
        compute. A KL in the reward is between the policy that sampled and the reference.

        Raises:
            NotFiniteError: on every rank, where a log-probability is not finite, the generator's or the trainer's.
        """
        messages = [(i, message) for i, episode in enumerate(episodes) for message in episode.messages_of(role)]
        rows = [Row(m.prompt_ids, m.response_ids, rollout_logprobs=m.logprobs or None) for _, m in messages]
        lost = sum(not all(map(math.isfinite, row.rollout_logprobs or ())) for row in rows)
        if total := sum(self._world.all_gather(lost)):
            raise NotFiniteError(
                f"the {role}'s generator gave log-probabilities that are not finite: {total} responses"
            )
        batches = None
        if self._config.needs_old_logprobs:
            batches = policy.microbatches(rows, self._world)
            old = scatter_back(batches, policy.actor.token_logprobs(batches), len(rows))
            rows = [replace(row, old_logprobs=values) for row, values in zip(rows, old, strict=True)]
        if self._config.kl_beta > 0:
            batches = batches or policy.microbatches(rows, self._world)
            reference = scatter_back(batches, policy.actor.reference_logprobs(batches), len(rows))
            rows = [replace(row, ref_logprobs=values) for row, values in zip(rows, reference, strict=True)]
        return RolloutBatch(role, rows, [i for i, _ in messages])

    def update(self, policy: TrainablePolicy, batch: RolloutBatch, scored: Sequence[Scored]) -> dict[str, float]:
        """One pass over the rollout in ``grpo.minibatches`` optimizer steps. Returns global metrics.

        ``scored``: the batch's episodes with their rewards, in order.

        Raises:
            DivergedError: on every rank, when ``grpo.max_skipped_updates`` updates in a row were not finite or too
                large to be made, when the optimizer used a gradient that was not finite, or left such weights.
        """
        advantages, baselines = self.advantages(batch, scored)
        groups = sorted({s.episode.group for s in scored})
        minibatch_of = {group: i % self._config.minibatches for i, group in enumerate(groups)}
        ratios, norms, largest = Ratios(), list[float](), dict[str, float]()
        with_entropy = self._config.entropy_bonus > 0
        for minibatch in range(self._config.minibatches):
            own = [
                (row, i)
                for row, i in zip(batch.rows, batch.episode_of, strict=True)
                if advantages.live[i] and minibatch_of[scored[i].episode.group] == minibatch
            ]
            live = [replace(row, advantage=float(advantages.values[i])) for row, i in own]
            tokens, sequences, teaching = self._world.sum_data_parallel(
                sum(len(row.response_ids) for row in live),
                len(live),
                sum(bool(advantages.teaching[i]) for _, i in own),
            )
            norm = Normalizer(tokens, sequences)
            ratios.add("live_rows", teaching)
            if norm.tokens == 0:  # the same on every rank: nothing to learn from here
                continue
            batches = policy.microbatches(live, self._world)

            def objective(
                logprobs: torch.Tensor,
                batch: MicroBatch,
                entropy: torch.Tensor | None = None,
                norm: Normalizer = norm,
            ) -> Objective:
                return grpo_objective(logprobs, batch, self._config, norm, entropy)

            try:
                update = policy.learn(batches, objective, self._config.skip_grad_norm, True, with_entropy)
            except FloatingPointError as error:
                raise DivergedError(str(error)) from error
            ratios.add("skipped_updates", not update.made)
            if update.made:
                for name, (value, count) in update.metrics.items():
                    if name.endswith("_max"):
                        largest[name] = max(largest.get(name, 0.0), value)
                    else:
                        ratios.add(name, value, count)
                norms.append(update.grad_norm)
            elif policy.skipped_updates >= self._config.max_skipped_updates:
                raise DivergedError(
                    f"{policy.skipped_updates} updates of the {policy.role} in a row were not made "
                    f"(grpo.max_skipped_updates={self._config.max_skipped_updates}); last gradient norm "
                    f"{update.grad_norm:g} (grpo.skip_grad_norm={self._config.skip_grad_norm})"
                )
        if norms and self._config.reference_every is not None:
            policy.follow_with_reference(self._config.reference_every, self._config.reference_mix)
        self.baselines = baselines
        means = ratios.means() | largest
        if norms:
            means["grad_norm"] = sum(norms) / len(norms)
            means["loss"] = means["policy_loss"] + self._config.kl_loss_beta * means["kl"]
            means["loss"] -= self._config.entropy_bonus * means["entropy"]
        means["lr"] = policy.learning_rate
        return {f"train_optim/{name}": value for name, value in means.items()}

    def advantages(self, batch: RolloutBatch, scored: Sequence[Scored]) -> tuple[Advantages, RoleBaselines]:
        """Advantages of this rank's episodes, and the roles' baselines after them. An episode that is truncated in any
        turn is truncated."""
        config = self._config
        rewards = episode_rewards(batch.role, scored)
        if config.kl_beta > 0 and config.kl_in == "reward":
            rewards = less_kl(rewards, batch.rows, batch.episode_of, config.kl_beta, config.kl_estimator)
        own, after = None, self.baselines
        if config.baseline == "role":
            own, after = next_baselines(self._world, batch.role, rewards, scored, self.baselines, config.role_decay)
        truncated = [not all(m.finished for m in s.episode.messages_of(batch.role)) for s in scored]
        inputs = AdvantageInputs(
            rewards=torch.tensor([0.0 if reward is None else reward for reward in rewards]),
            groups=torch.tensor([s.episode.group for s in scored], dtype=torch.long),
            has_reward=torch.tensor([reward is not None for reward in rewards], dtype=torch.bool),
            truncated=torch.tensor(truncated, dtype=torch.bool),
            baselines=None if own is None else torch.tensor(own),
        )
        return rollout_advantages(inputs, config), after


def grpo_objective(
    logprobs: torch.Tensor,
    batch: MicroBatch,
    config: GRPOConfig,
    norm: Normalizer,
    entropy: torch.Tensor | None = None,
) -> Objective:
    """``rl.loss.grpo_loss`` of a microbatch, on the device where its log-probabilities are."""
    device = logprobs.device

    def here(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.to(device)

    outputs = grpo_loss(
        LossInputs(
            logprobs=logprobs,
            advantages=batch.advantages.to(device),
            mask=batch.mask.to(device),
            old_logprobs=here(batch.old_logprobs),
            ref_logprobs=here(batch.ref_logprobs),
            rollout_logprobs=here(batch.rollout_logprobs),
            entropy=entropy,
        ),
        config,
        norm,
    )
    return Objective(outputs.loss, outputs.metrics)
