# ruff: noqa: F722 (axis names in strings)
"""The GRPO loss of one microbatch, normalised by counts over the whole optimizer step.

With ρ = π_θ / π_old of a sampled token and A the advantage of its response (MAGIC, arXiv 2602.01539, section 4.1):

    L = −mean[ min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) − β KL(π_θ ‖ π_ref) ]

The mean is over tokens, or over responses with each a mean over its tokens (``grpo.aggregation``). This is the GRPO of
DeepSeekMath (arXiv 2402.03300), with ε_low and ε_high apart, a choice of KL estimators, and truncated importance
sampling towards the generator (``grpo.tis_clip``).
"""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here before ``exp``, as verl and others do: from 89 on it is infinite in float32, and infinity
times a gradient of 0 is NaN. e²⁰ is far outside any clip range."""

MetricSum = tuple[Float[Tensor, ""], Int[Tensor, ""]]
"""(sum, count) over the trained tokens of a microbatch, to be summed over microbatches and ranks before dividing."""


@dataclass(frozen=True)
class LossInputs:
    """Everything the loss reads. Log-probabilities are of the sampled tokens, in nats, at the sampling temperature.

    ``mask`` already selects the tokens that train; the loss never derives eligibility again, and reads nothing where it
    is False. ``old_logprobs``: of the policy that sampled; None where that is the present one (a single minibatch):
    then ρ is 1, and its gradient that of the policy gradient. ``ref_logprobs``: of the reference policy; needed where
    β > 0. ``rollout_logprobs``: of the generator, which computes the sampling policy with other kernels; None where it
    gives none.
    """

    logprobs: Float[Tensor, "batch time"]
    advantages: Float[Tensor, " batch"]
    mask: Bool[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"] | None = None
    ref_logprobs: Float[Tensor, "batch time"] | None = None
    rollout_logprobs: Float[Tensor, "batch time"] | None = None


@dataclass(frozen=True)
class Normalizer:
    """Trained tokens and trained responses of *all* microbatches and data-parallel ranks of one optimizer step."""

    tokens: float
    sequences: float


@dataclass(frozen=True)
class LossOutputs:
    """``loss``: this microbatch's share of the global mean.

    ``metrics``: by name. Of names that end in ``_max``, the largest quotient over microbatches and ranks is meant.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, MetricSum]


def grpo_loss(inputs: LossInputs, config: GRPOConfig, norm: Normalizer) -> LossOutputs:
    """The equation above. The sum over microbatches and ranks is the loss of the whole step.

    Masked tokens contribute exactly zero to loss and gradient, whatever numbers stand there. Log-ratios are cut at
    ±``MAX_LOG_RATIO``, so that loss and gradient are finite wherever log-probabilities are.

    With ``tis_clip`` = C the policy term of each token is weighted by ``min(π_old / π_rollout, C)``: truncated
    importance sampling, which corrects for a generator whose numerics are not the trainer's (Yao et al., Your efficient
    RL framework secretly brings you off-policy RL training, 2025).

    Raises:
        ValueError: ``tis_clip`` without ``rollout_logprobs``, or β > 0 without ``ref_logprobs``.
    """
    mask = inputs.mask
    logprobs = _masked(inputs.logprobs, mask)
    old = logprobs.detach() if inputs.old_logprobs is None else _masked(inputs.old_logprobs, mask)
    advantages = inputs.advantages[:, None].expand_as(logprobs)

    log_ratio = _cut(logprobs - old)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.ratio_clip_low, 1 + config.ratio_clip_high)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages)

    mismatch = None  # log π_old / π_rollout
    if inputs.rollout_logprobs is not None:
        mismatch = _cut(old - _masked(inputs.rollout_logprobs, mask)).detach()
    if config.tis_clip is not None:
        if mismatch is None:
            raise ValueError(f"grpo.tis_clip={config.tis_clip} needs the generator's log-probabilities")
        policy_loss = policy_loss * mismatch.exp().clamp(max=config.tis_clip)

    per_token = policy_loss
    kl = torch.zeros_like(policy_loss)
    if config.kl_beta > 0:
        if inputs.ref_logprobs is None:
            raise ValueError(f"grpo.kl_beta={config.kl_beta} needs reference log-probabilities")
        kl = kl_estimate(logprobs, _masked(inputs.ref_logprobs, mask), config.kl_estimator)
        per_token = policy_loss + config.kl_beta * kl

    loss = _aggregate(per_token, mask, config.aggregation, norm)
    with torch.no_grad():
        count = mask.sum()
        metrics = {
            "policy_loss": (_sum(policy_loss, mask), count),
            "kl": (_sum(kl, mask), count),
            "ratio": (_sum(ratio, mask), count),
            "clip_low_share": (_sum((ratio < 1 - config.ratio_clip_low) & (advantages < 0), mask), count),
            "clip_high_share": (_sum((ratio > 1 + config.ratio_clip_high) & (advantages > 0), mask), count),
            "approx_kl_old": (_sum(ratio - 1 - log_ratio, mask), count),
        }
        if mismatch is not None:
            factor = mismatch.abs().exp()
            metrics["mismatch"] = (_sum(factor, mask), count)
            metrics["mismatch_max"] = (_masked(factor, mask).max(), torch.ones_like(count))
            if config.tis_clip is not None:
                metrics["tis_clipped_share"] = (_sum(mismatch.exp() > config.tis_clip, mask), count)
    return LossOutputs(loss, metrics)


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"], estimator: str
) -> Float[Tensor, "*shape"]:
    """Per-token estimates of KL(π_θ ‖ π_ref) from samples of π_θ, in nats.

    With ``d = log π_ref − log π_θ``: k1 is ``−d`` (unbiased), k2 ``d² / 2`` (lower variance, biased), k3
    ``e^d − d − 1`` (unbiased, never negative; ``d`` is cut at ±``MAX_LOG_RATIO``). Source: Schulman, Approximating KL
    Divergence, 2020.

    Raises:
        ValueError: ``estimator`` is none of these.
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        d = _cut(d)
        return d.exp() - d - 1
    raise ValueError(f"grpo.kl_estimator={estimator!r} must be one of: k1, k2, k3")


def nll_loss(logprobs: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], norm: Normalizer) -> LossOutputs:
    """``−mean log π_θ`` of the masked tokens (phase 1, section 4.1): this microbatch's share of the global mean."""
    total = -_sum(logprobs, mask)
    return LossOutputs(total / max(norm.tokens, 1.0), {"nll": (total.detach().clone(), mask.sum())})


def _cut(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _aggregate(
    per_token: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], aggregation: str, norm: Normalizer
) -> Float[Tensor, ""]:
    if aggregation == "token":
        return _sum(per_token, mask) / max(norm.tokens, 1.0)
    lengths = mask.sum(dim=1).clamp(min=1)
    means = _masked(per_token, mask).sum(dim=1) / lengths
    return means.sum() / max(norm.sequences, 1.0)


def _masked(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """``values`` with exactly 0 where ``mask`` is False; there no gradient flows, not even out of NaN."""
    return torch.where(mask, values, 0.0)


def _sum(values: Shaped[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, ""]:
    return _masked(values.float(), mask).sum()
