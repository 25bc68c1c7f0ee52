"""The GRPO loss of one microbatch, normalised by global counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemo_magic.rl.config import GRPOConfig


@dataclass(frozen=True)
class LossInputs:
    """Everything the loss reads.

    ``logprobs``, ``old_logprobs``, ``ref_logprobs``: [b, T], of the sampled tokens, in nats, all at the sampling
    temperature. ``old_logprobs`` None: the rollout's policy is the present one (a single minibatch), the ratio is 1
    and its gradient that of the policy gradient. ``ref_logprobs`` is needed iff β > 0. ``rollout_logprobs``: those of
    the generator, which computes the same policy with other kernels; None where it gives none. ``advantages``: [b].
    ``mask``: [b, T], 1 on exactly the tokens that train; never re-derive eligibility here.
    """

    logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    old_logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    rollout_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class Normalizer:
    """Counts over *all* microbatches and data-parallel ranks of one optimizer step: trained tokens, trained
    responses."""

    tokens: float
    sequences: float


@dataclass(frozen=True)
class LossOutputs:
    """``loss``: this microbatch's share of the global mean. ``metrics``: name → (sum, count), to be summed before
    dividing; of names that end in ``_max``, the largest quotient is meant."""

    loss: torch.Tensor
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor]]


def grpo_loss(inputs: LossInputs, config: GRPOConfig, norm: Normalizer) -> LossOutputs:
    """``−mean[ min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A) − β KL ]`` (paper section 4.1), ``ρ = π_θ / π_old`` per token.

    Summing the result over microbatches and ranks gives the loss of the whole step. Masked tokens contribute exactly
    zero to loss and gradient, whatever numbers stand there.

    With ``tis_clip`` = C each token's policy term is weighted by ``min(π_old / π_rollout, C)``: truncated importance
    sampling, which corrects for a generator whose numerics are not the trainer's (Yao et al., Your efficient RL
    framework secretly brings you off-policy RL training, 2025).
    """
    mask = inputs.mask.bool()
    logprobs = torch.where(mask, inputs.logprobs, 0.0)
    old = logprobs.detach() if inputs.old_logprobs is None else torch.where(mask, inputs.old_logprobs, 0.0)
    advantages = inputs.advantages[:, None].expand_as(logprobs)

    log_ratio = logprobs - old
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.ratio_clip_low, 1 + config.ratio_clip_high)
    policy = -torch.minimum(ratio * advantages, clipped * advantages)
    drift = None
    if inputs.rollout_logprobs is not None:
        drift = (old - torch.where(mask, inputs.rollout_logprobs, 0.0)).detach()
    if config.tis_clip is not None:
        if drift is None:
            raise ValueError(f"grpo.tis_clip={config.tis_clip} needs the generator's log-probabilities")
        policy = policy * drift.exp().clamp(max=config.tis_clip)
    per_token = policy
    kl = torch.zeros_like(policy)
    if config.kl_beta > 0:
        if inputs.ref_logprobs is None:
            raise ValueError(f"grpo.kl_beta={config.kl_beta} needs reference log-probabilities")
        kl = kl_estimate(logprobs, torch.where(mask, inputs.ref_logprobs, 0.0), config.kl_estimator)
        per_token = policy + config.kl_beta * kl

    loss = _aggregate(per_token, mask, config.aggregation, norm)
    with torch.no_grad():
        count = mask.sum()
        metrics = {
            "policy_loss": (_sum(policy, mask), count),
            "kl": (_sum(kl, mask), count),
            "ratio": (_sum(ratio, mask), count),
            "clip_low_share": (_sum((ratio < 1 - config.ratio_clip_low) & (advantages < 0), mask), count),
            "clip_high_share": (_sum((ratio > 1 + config.ratio_clip_high) & (advantages > 0), mask), count),
            "approx_kl_old": (_sum(ratio - 1 - log_ratio, mask), count),
        }
        if drift is not None:
            mismatch = drift.abs().exp()
            metrics["mismatch"] = (_sum(mismatch, mask), count)
            metrics["mismatch_max"] = (torch.where(mask, mismatch, 0.0).max(), torch.ones_like(count))
            if config.tis_clip is not None:
                metrics["tis_clipped_share"] = (_sum((drift.exp() > config.tis_clip).float(), mask), count)
    return LossOutputs(loss, metrics)


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Per-token estimates of KL(π_θ ‖ π_ref) from samples of π_θ, in nats, same shape as the inputs.

    k1 ``log π_θ − log π_ref`` (unbiased), k2 half its square (lower variance, biased), k3 ``e^d − d − 1`` with
    ``d = log π_ref − log π_θ`` (unbiased, never negative).

    Source: Schulman, Approximating KL Divergence, 2020.
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return d.exp() - d - 1
    raise ValueError(f"grpo.kl_estimator={estimator!r} must be one of: k1, k2, k3")


def nll_loss(logprobs: torch.Tensor, mask: torch.Tensor, norm: Normalizer) -> LossOutputs:
    """Negative log-likelihood of the masked tokens (phase 1): this microbatch's share of the global token mean."""
    keep = mask.bool()
    total = -_sum(logprobs, keep)
    return LossOutputs(total / max(norm.tokens, 1.0), {"nll": (total.detach().clone(), keep.sum())})


def _aggregate(per_token: torch.Tensor, mask: torch.Tensor, aggregation: str, norm: Normalizer) -> torch.Tensor:
    if aggregation == "token":
        return _sum(per_token, mask) / max(norm.tokens, 1.0)
    lengths = mask.sum(dim=1).clamp(min=1)
    means = torch.where(mask, per_token, 0.0).sum(dim=1) / lengths
    return means.sum() / max(norm.sequences, 1.0)


def _sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values.float(), 0.0).sum()
