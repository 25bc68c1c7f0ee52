# ruff: noqa: F722 (axis names in strings)
"""Rewards to advantages (MAGIC, arXiv 2602.01539, section 4.1): which samples count, and the rule that scores them.

A rule is a file: ``group_baseline``, ``leave_one_out``, ``role_baseline``.
"""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.group_baseline import group_advantages
from nemo_magic.rl.groups import GroupStatistics
from nemo_magic.rl.leave_one_out import leave_one_out_advantages


@dataclass(frozen=True)
class AdvantageInputs:
    """One role's rewards in a list of samples.

    ``rewards``: not read where ``has_reward`` is False, and may be NaN there. ``groups``: equal numbers form a group;
    they need not be sorted or consecutive. ``truncated``: the length limit cut the sample. ``baselines``: the role's
    own, per sample; needed where ``grpo.baseline=role``.
    """

    rewards: Float[Tensor, " sample"]
    groups: Int[Tensor, " sample"]
    has_reward: Bool[Tensor, " sample"]
    truncated: Bool[Tensor, " sample"]
    baselines: Float[Tensor, " sample"] | None = None


@dataclass(frozen=True)
class Advantages:
    """``live``: the samples that contribute to the loss. ``teaching``: those of them that have something to say, for
    their group has spread. Where a sample is not live, its value is exactly 0."""

    values: Float[Tensor, " sample"]
    live: Bool[Tensor, " sample"]
    teaching: Bool[Tensor, " sample"]


def rollout_advantages(inputs: AdvantageInputs, config: GRPOConfig) -> Advantages:
    """Advantages by ``grpo.baseline``, whose truncated samples are treated as ``grpo.truncated`` says.

    A sample without a reward is not live. A group of fewer than two samples with one, or without spread, teaches
    nothing: its values are 0, and it is live where ``grpo.no_spread=keep``. With the role's own baseline every sample
    with a reward is live.

    Raises:
        ValueError: ``grpo.baseline=role`` without ``baselines``.
    """
    valid = inputs.has_reward & ~inputs.truncated if config.truncated == "drop" else inputs.has_reward
    teaching = valid
    if config.baseline == "role":
        if inputs.baselines is None:
            raise ValueError("grpo.baseline=role needs the role's baselines")
        values = torch.where(valid, inputs.rewards - inputs.baselines, 0.0)
    else:
        groups = GroupStatistics.of(inputs.rewards, inputs.groups, valid)
        teaching = groups.has_spread
        values = (
            leave_one_out_advantages(groups)
            if config.baseline == "leave_one_out"
            else (group_advantages(groups, config))
        )
    live = valid if config.no_spread == "keep" else teaching
    if config.truncated == "mask":
        live, teaching = live & ~inputs.truncated, teaching & ~inputs.truncated
    return Advantages(torch.where(live, values, 0.0), live, teaching)
