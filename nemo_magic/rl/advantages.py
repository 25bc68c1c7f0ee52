# ruff: noqa: F722 (axis names in strings)
"""Rewards to advantages, group by group (MAGIC, arXiv 2602.01539, section 4.1)."""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig

ZERO_SPREAD = 1e-6
"""A group whose rewards have a smaller standard deviation than this teaches nothing: its advantages are all zero."""


@dataclass(frozen=True)
class AdvantageInputs:
    """One role's rewards in a list of samples.

    ``rewards``: not read where ``has_reward`` is False, and may be NaN there. ``groups``: equal numbers form a group;
    they need not be sorted or consecutive. ``truncated``: the length limit cut the sample.
    """

    rewards: Float[Tensor, " sample"]
    groups: Int[Tensor, " sample"]
    has_reward: Bool[Tensor, " sample"]
    truncated: Bool[Tensor, " sample"]


@dataclass(frozen=True)
class Advantages:
    """``live``: the samples that contribute to the loss. Where a sample is not live, its value is exactly 0."""

    values: Float[Tensor, " sample"]
    live: Bool[Tensor, " sample"]


def rollout_advantages(inputs: AdvantageInputs, config: GRPOConfig) -> Advantages:
    """``group_advantages`` of a rollout whose truncated samples are treated as ``grpo.truncated`` says."""
    valid = inputs.has_reward & ~inputs.truncated if config.truncated == "drop" else inputs.has_reward
    advantages = group_advantages(inputs.rewards, inputs.groups, valid, config.scale_by_std)
    if config.truncated != "mask":
        return advantages
    values = torch.where(inputs.truncated, 0.0, advantages.values)
    return Advantages(values, advantages.live & ~inputs.truncated)


def group_advantages(
    rewards: Float[Tensor, " sample"],
    groups: Int[Tensor, " sample"],
    valid: Bool[Tensor, " sample"],
    scale_by_std: bool = True,
) -> Advantages:
    """``A_i = (r_i − mean(r)) / std(r)`` over the valid samples of each sample's group (section 4.1).

    ``std`` is the population standard deviation; without ``scale_by_std`` it is 1. A group of fewer than two valid
    samples, or without spread, is not live. An invalid sample is not live, and its reward is never read.
    """
    kept = torch.where(valid, rewards, 0.0).double()
    _, index = groups.unique(return_inverse=True)
    size = int(index.max()) + 1 if index.numel() else 0
    count = torch.zeros(size, dtype=torch.double).index_add_(0, index, valid.double())
    mean = torch.zeros(size, dtype=torch.double).index_add_(0, index, kept) / count.clamp(min=1)
    centred = torch.where(valid, kept - mean[index], 0.0)
    variance = torch.zeros(size, dtype=torch.double).index_add_(0, index, centred.square()) / count.clamp(min=1)
    std = variance.sqrt()[index]
    live = valid & (std > ZERO_SPREAD)
    scale = std.clamp(min=ZERO_SPREAD) if scale_by_std else torch.ones_like(std)
    return Advantages(torch.where(live, centred / scale, 0.0).float(), live)
