# ruff: noqa: F722 (axis names in strings)
"""The GRPO loss of one microbatch, normalised by counts over the whole optimizer step.

With ρ = π_θ / π_old of a sampled token and A the advantage of its response (MAGIC, arXiv 2602.01539, section 4.1):

    L = −mean[ min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) − β KL(π_θ ‖ π_ref) + c H(π_θ) ]

The policy term (``policy_terms``), the mean (``aggregation``), the KL (``kl``) and the weights towards the generator
(``importance``) each have their alternatives; docs/objective.md lists them with their sources.
"""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nemo_magic.rl.aggregation import Normalizer, aggregate
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.importance import importance_weights
from nemo_magic.rl.kl import kl_term
from nemo_magic.rl.masked import cut, masked, masked_sum
from nemo_magic.rl.policy_terms import POLICY_TERMS, Sampled

MetricSum = tuple[Float[Tensor, ""], Int[Tensor, ""]]
"""(sum, count) over the trained tokens of a microbatch, to be summed over microbatches and ranks before dividing."""


@dataclass(frozen=True)
class LossInputs:
    """Everything the loss reads. Log-probabilities are of the sampled tokens, in nats, at the sampling temperature.

    ``mask`` already selects the tokens that train; the loss never derives eligibility again, and reads nothing where it
    is False. ``old_logprobs``: of the policy that sampled; None where that is the present one (a single minibatch):
    then ρ is 1, and its gradient that of the policy gradient. ``ref_logprobs``: of the reference policy; needed where
    the KL is a term of the loss. ``rollout_logprobs``: of the generator, which computes the sampling policy with other
    kernels; None where it gives none. ``entropy``: of the next token under π_θ, in nats, with its gradient; needed
    where there is a bonus for it.
    """

    logprobs: Float[Tensor, "batch time"]
    advantages: Float[Tensor, " batch"]
    mask: Bool[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"] | None = None
    ref_logprobs: Float[Tensor, "batch time"] | None = None
    rollout_logprobs: Float[Tensor, "batch time"] | None = None
    entropy: Float[Tensor, "batch time"] | None = None


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
    ±``MAX_LOG_RATIO``, so that loss and gradient are finite wherever log-probabilities are. With ``tis_clip`` the
    policy term of each token is weighted by ``importance_weights``.

    Raises:
        ValueError: ``tis_clip`` without ``rollout_logprobs``, β > 0 in the loss without ``ref_logprobs``, or a bonus
            for an entropy that is not given.
    """
    mask = inputs.mask
    logprobs = masked(inputs.logprobs, mask)
    old = logprobs.detach() if inputs.old_logprobs is None else masked(inputs.old_logprobs, mask)
    advantages = inputs.advantages[:, None].expand_as(logprobs)

    policy = POLICY_TERMS[config.policy_loss](Sampled(logprobs, old, advantages, mask), config)
    policy_loss, ratio = policy.loss, policy.ratio

    mismatch = None  # log π_old / π_rollout
    if inputs.rollout_logprobs is not None:
        mismatch = cut(old - masked(inputs.rollout_logprobs, mask)).detach()
    beyond = torch.zeros_like(mask)
    if config.tis_clip is not None:
        if mismatch is None:
            raise ValueError(f"grpo.tis_clip={config.tis_clip} needs the generator's log-probabilities")
        weights, beyond = importance_weights(mismatch, mask, config)
        policy_loss = policy_loss * weights

    per_token = policy_loss
    kl = torch.zeros_like(policy_loss)
    if config.kl_loss_beta > 0:
        if inputs.ref_logprobs is None:
            raise ValueError(f"grpo.kl_beta={config.kl_beta} needs reference log-probabilities")
        kl = kl_term(logprobs, masked(inputs.ref_logprobs, mask), cut(logprobs - old).exp(), config)
        per_token = policy_loss + config.kl_loss_beta * kl
    if config.entropy_bonus > 0:
        if inputs.entropy is None:
            raise ValueError(f"grpo.entropy_bonus={config.entropy_bonus} needs the entropy of the policy")
        per_token = per_token - config.entropy_bonus * masked(inputs.entropy, mask)

    loss = aggregate(per_token, mask, config, norm)
    with torch.no_grad():
        count = mask.sum()
        log_ratio = cut(logprobs - old)
        metrics = {
            "policy_loss": (masked_sum(policy_loss, mask), count),
            "kl": (masked_sum(kl, mask), count),
            "ratio": (masked_sum(ratio, mask), count),
            "clip_low_share": (masked_sum((ratio < 1 - config.ratio_clip_low) & (advantages < 0), mask), count),
            "clip_high_share": (masked_sum((ratio > 1 + config.ratio_clip_high) & (advantages > 0), mask), count),
            "approx_kl_old": (masked_sum(log_ratio.exp() - 1 - log_ratio, mask), count),
        }
        if config.dual_clip is not None:
            over = (ratio > config.dual_clip) & (advantages < 0)
            metrics["dual_clip_share"] = (masked_sum(over, mask), count)
        if mismatch is not None:
            factor = mismatch.abs().exp()
            metrics["mismatch"] = (masked_sum(factor, mask), count)
            metrics["mismatch_max"] = (masked(factor, mask).max(), torch.ones_like(count))
            if config.tis_clip is not None:
                metrics["tis_clipped_share"] = (masked_sum(beyond, mask), count)
    return LossOutputs(loss, metrics)


def nll_loss(logprobs: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], norm: Normalizer) -> LossOutputs:
    """``−mean log π_θ`` of the masked tokens (phase 1, section 4.1): this microbatch's share of the global mean."""
    total = -masked_sum(logprobs, mask)
    return LossOutputs(total / max(norm.tokens, 1.0), {"nll": (total.detach().clone(), mask.sum())})
