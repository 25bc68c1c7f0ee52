# ruff: noqa: F722 (axis names in strings)
"""The policy term per token, and the ratio it is made of: one function a rule."""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.masked import cut, response_mean


@dataclass(frozen=True)
class PolicyTerm:
    """``loss``: per token, to be averaged. ``ratio``: π_θ / π_old that the rule clips, with its gradient."""

    loss: Float[Tensor, "batch time"]
    ratio: Float[Tensor, "batch time"]


@dataclass(frozen=True)
class Sampled:
    """What a rule reads: log-probabilities under π_θ and π_old, 0 outside the mask, and advantages."""

    logprobs: Float[Tensor, "batch time"]
    old: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]


def clipped(sampled: Sampled, config: GRPOConfig) -> PolicyTerm:
    """``−min(ρ A, clip(ρ) A)`` (PPO, arXiv 1707.06347), and where A < 0 at most ``−c A`` with c = ``grpo.dual_clip``
    (arXiv 1912.09729)."""
    ratio = cut(sampled.logprobs - sampled.old, config.max_log_ratio).exp()
    return PolicyTerm(_least(ratio, sampled.advantages, config), ratio)


def gspo(sampled: Sampled, config: GRPOConfig) -> PolicyTerm:
    """The same with the ratio of whole responses, ``s = (π_θ(y) / π_old(y))^(1 / |y|)``, of which every token has the
    value (GSPO, arXiv 2507.18071).

    The gradient is that of ``s`` with respect to the response, of which each token has its part: ``s · ∇ log π_θ``.
    """
    mean = cut(response_mean(sampled.logprobs - sampled.old, sampled.mask), config.max_log_ratio)
    own = sampled.logprobs - sampled.logprobs.detach()  # 0, and the token's own gradient
    ratio = (mean.detach()[:, None] + own).exp()
    return PolicyTerm(_least(ratio, sampled.advantages, config), ratio)


def cispo(sampled: Sampled, config: GRPOConfig) -> PolicyTerm:
    """``−sg[clip(ρ)] A log π_θ``: a clipped weight without a gradient, so that every token keeps its own (CISPO, arXiv
    2506.13585)."""
    ratio = cut(sampled.logprobs - sampled.old, config.max_log_ratio).exp()
    weight = ratio.clamp(1 - config.ratio_clip_low, 1 + config.ratio_clip_high).detach()
    return PolicyTerm(-weight * sampled.advantages * sampled.logprobs, ratio)


POLICY_TERMS: dict[str, Callable[[Sampled, GRPOConfig], PolicyTerm]] = {
    "clip": clipped,
    "gspo": gspo,
    "cispo": cispo,
}
"""By ``grpo.policy_loss``."""


def _least(
    ratio: Float[Tensor, "batch time"], advantages: Float[Tensor, "batch time"], config: GRPOConfig
) -> Float[Tensor, "batch time"]:
    within = ratio.clamp(1 - config.ratio_clip_low, 1 + config.ratio_clip_high)
    loss = -torch.minimum(ratio * advantages, within * advantages)
    if config.dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -config.dual_clip * advantages), loss)
