# ruff: noqa: F722 (axis names in strings)
"""Means and spreads of the rewards in each sample's group."""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ZERO_SPREAD = 1e-6
"""A group whose rewards have a smaller standard deviation than this teaches nothing: its advantages are all zero."""


@dataclass(frozen=True)
class GroupStatistics:
    """Of every sample: its distance from the mean of its group's valid rewards, how many those are, and their
    population variance. In float64. What is not valid is 0 away from the mean, and its reward was never read."""

    centred: Float[Tensor, " sample"]
    count: Float[Tensor, " sample"]
    variance: Float[Tensor, " sample"]
    valid: Bool[Tensor, " sample"]

    @classmethod
    def of(
        cls, rewards: Float[Tensor, " sample"], groups: Int[Tensor, " sample"], valid: Bool[Tensor, " sample"]
    ) -> "GroupStatistics":
        """The statistics of the groups that equal numbers form."""
        kept = torch.where(valid, rewards, 0.0).double()
        _, index = groups.unique(return_inverse=True)
        size = int(index.max()) + 1 if index.numel() else 0
        count = torch.zeros(size, dtype=torch.double).index_add_(0, index, valid.double()).clamp(min=1)
        mean = torch.zeros(size, dtype=torch.double).index_add_(0, index, kept) / count
        centred = torch.where(valid, kept - mean[index], 0.0)
        variance = torch.zeros(size, dtype=torch.double).index_add_(0, index, centred.square()) / count
        return cls(centred, count[index], variance[index], valid)

    @property
    def has_spread(self) -> Bool[Tensor, " sample"]:
        """The valid samples whose group has rewards that differ."""
        return self.valid & (self.variance.sqrt() > ZERO_SPREAD)
