"""Rewards to advantages, group by group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemo_magic.rl.config import GRPOConfig

ZERO_SPREAD = 1e-6
"""A group whose rewards' standard deviation is below this teaches nothing: all its advantages are zero."""


@dataclass(frozen=True)
class Advantages:
    """``values`` [N]; ``live`` [N] bool: samples that contribute to the loss. Where not live, the value is exactly
    0."""

    values: torch.Tensor
    live: torch.Tensor


def group_advantages(
    rewards: torch.Tensor, groups: torch.Tensor, valid: torch.Tensor, scale_by_std: bool = True
) -> Advantages:
    """``A_i = (r_i − mean(r)) / std(r)`` over each sample's group (paper section 4.1).

    Args:
        rewards: [N]; what stands where ``valid`` is False is never read and may be NaN.
        groups: [N] integers; equal numbers form a group. They need not be sorted or consecutive.
        valid: [N] bool; samples without a verdict are not part of their group.
        scale_by_std: divide by the population standard deviation of the group's valid samples.

    A group of fewer than two valid samples, or without spread, is not live.
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


def rollout_advantages(
    rewards: torch.Tensor, groups: torch.Tensor, paid: torch.Tensor, truncated: torch.Tensor, config: GRPOConfig
) -> Advantages:
    """``group_advantages`` of a rollout whose truncated responses are treated as ``grpo.truncated`` says.

    Args:
        rewards: [N]; not read where ``paid`` is False.
        groups: [N] integers.
        paid: [N] bool, samples that have a reward.
        truncated: [N] bool, samples cut by the length limit.
    """
    valid = paid & ~truncated if config.truncated == "drop" else paid
    found = group_advantages(rewards, groups, valid, config.scale_by_std)
    if config.truncated != "mask":
        return found
    return Advantages(torch.where(truncated, 0.0, found.values), found.live & ~truncated)
