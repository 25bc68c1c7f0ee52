"""Dynamic sampling (DAPO, arXiv 2503.14476): groups without spread are replaced with more seeds, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_magic.actors.distributed import World
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.data.seeds import SeedSampler
from nemo_magic.game.episode import Episode, Role, Seed
from nemo_magic.game.metrics import Scored
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.training.trainer import RolloutBatch, Trainer

Play = Callable[[Role, Sequence[tuple[int, Seed]]], list[Episode]]
"""The learner's episodes of this rank's (group, seed) pairs, in the present step; all ranks take part."""


@dataclass(frozen=True)
class Refill:
    """Plays more seeds for groups that teach nothing. ``wanted``: groups a step, over all ranks. ``rounds``: how often,
    at most; 0: never."""

    world: World
    trainer: Trainer
    rewards: RewardManager
    sampler: SeedSampler
    play: Play
    wanted: int
    rounds: int

    def complete(
        self, policy: TrainablePolicy, learner: Role, step: int, batch: RolloutBatch, scored: list[Scored]
    ) -> tuple[RolloutBatch, list[Scored], dict[str, float]]:
        """The step's batch and episodes with those that were added, and metrics of it.

        As many seeds are played as groups teach nothing, until ``wanted`` of them teach. New groups are numbered on, so
        that they sample other texts. Groups that teach nothing stay, and ``grpo.no_spread`` decides about them.
        """
        played = 0
        for number in range(self.rounds):
            missing = self.wanted - self._teaching(batch, scored)
            if missing <= 0:
                break
            first, played = self.wanted + played, played + missing
            seeds = enumerate(self.sampler.more(step, number, missing), first)
            episodes = self.play(learner, list(seeds)[self.world.dp_rank :: self.world.dp_size])
            pending = self.rewards.submit(episodes)
            more = self.trainer.prepare(policy, learner, episodes)
            batch, scored = batch.joined(more, len(scored)), [*scored, *self.rewards.collect(pending)]
        return batch, scored, {"train_rollouts/refilled_groups": float(played)} if self.rounds else {}

    def _teaching(self, batch: RolloutBatch, scored: Sequence[Scored]) -> int:
        advantages, _ = self.trainer.advantages(batch, scored)
        teach = {one.episode.group for one, yes in zip(scored, advantages.teaching.tolist(), strict=True) if yes}
        (total,) = self.world.sum_data_parallel(len(teach))
        return int(total)
