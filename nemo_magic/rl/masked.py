# ruff: noqa: F722 (axis names in strings)
"""Sums over the tokens that a mask selects, and log-ratios that stay finite."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here before ``exp``, as verl and others do: from 89 on it is infinite in float32, and infinity
times a gradient of 0 is NaN. e²⁰ is far outside any clip range."""


def masked(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """``values`` with exactly 0 where ``mask`` is False; there no gradient flows, not even out of NaN."""
    return torch.where(mask, values, 0.0)


def masked_sum(values: Shaped[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, ""]:
    """The sum over the mask."""
    return masked(values.float(), mask).sum()


def response_sum(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Each response's sum over its own tokens."""
    return masked(values, mask).sum(dim=1)


def response_mean(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Each response's mean over its own tokens; 0 for a row without any."""
    return response_sum(values, mask) / mask.sum(dim=1).clamp(min=1)


def cut(log_ratio: Float[Tensor, "*shape"], largest: float = MAX_LOG_RATIO) -> Float[Tensor, "*shape"]:
    """The log-ratio within [−``MAX_LOG_RATIO``, ``largest``]."""
    return log_ratio.clamp(-MAX_LOG_RATIO, largest)
