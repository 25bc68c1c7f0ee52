"""What a role is credited with in each episode of a step, before advantages are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_magic.game.episode import Role
from nemo_magic.game.metrics import Scored
from nemo_magic.rl.kl import kl_of_response
from nemo_magic.rl.role_baseline import RoleBaselines

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World
    from nemo_magic.rl.batch import Row


def episode_rewards(role: Role, scored: Sequence[Scored]) -> list[float | None]:
    """The role's reward for each episode; None where it has none."""
    parts = [one.rewards.get(role) if one.rewards is not None else None for one in scored]
    return [None if each is None else sum(each.values()) for each in parts]


def less_kl(
    rewards: Sequence[float | None], rows: Sequence[Row], episode_of: Sequence[int], beta: float, estimator: str
) -> list[float | None]:
    """The rewards less β times the KL of the episode's messages to the reference (``grpo.kl_in=reward``)."""
    result = list(rewards)
    for row, i in zip(rows, episode_of, strict=True):
        reward = result[i]
        if reward is not None:
            assert row.old_logprobs is not None
            assert row.ref_logprobs is not None
            result[i] = reward - beta * kl_of_response(row.old_logprobs, row.ref_logprobs, estimator)
    return result


def next_baselines(
    world: World,
    learner: Role,
    rewards: Sequence[float | None],
    scored: Sequence[Scored],
    before: RoleBaselines,
    decay: float,
) -> tuple[list[float], RoleBaselines]:
    """The learner's baseline for each of this rank's episodes, and the baselines that all ranks' episodes leave.

    ``rewards``: the learner's. All episodes count for both roles, in the order of groups and samples, whatever rank
    has them.
    """  # fmt: skip
    own = [
        ((one.episode.group, one.episode.sample, str(role)), f"{role}/{one.episode.seed.label}", reward)
        for role in Role
        for one, reward in zip(
            scored, rewards if role is learner else episode_rewards(role, scored), strict=True
        )
        if reward is not None
    ]  # fmt: skip
    every = sorted(row for rank in world.gather_data_parallel(own) for row in rank)
    values, after = before.after([(key, reward) for _, key, reward in every], decay)
    baseline_of = {place: value for (place, _, _), value in zip(every, values, strict=True)}
    places = [(one.episode.group, one.episode.sample, str(learner)) for one in scored]
    return [baseline_of.get(place, 0.0) for place in places], after
