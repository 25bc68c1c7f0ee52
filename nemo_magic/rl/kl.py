# ruff: noqa: F722 (axis names in strings)
"""The distance to the reference policy: estimators per token, and which gradient they have."""

import torch
from jaxtyping import Float
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.masked import cut


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
        d = cut(d)
        return d.exp() - d - 1
    raise ValueError(f"grpo.kl_estimator={estimator!r} must be one of: k1, k2, k3")


def kl_term(
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    ratio: Float[Tensor, "batch time"],
    config: GRPOConfig,
) -> Float[Tensor, "batch time"]:
    """The KL per token as a term of the loss, with the gradient that ``grpo.kl_gradient`` names.

    The gradient of an unbiased estimator of the KL is no unbiased estimator of its gradient: for samples of π_θ that of
    k1 is 0 on average, and that of k3 is the one of KL(π_ref ‖ π_θ). ``estimator`` leaves it so, as most do. ``k2``:
    the estimator's value with the gradient of k2, which is unbiased for samples of π_θ (verl's ``k3+``). ``weighted``:
    the estimator times ``ratio`` = π_θ / π_old, whose value and gradient are unbiased for samples of π_old
    (DeepSeek-V3.2, arXiv 2512.02556).
    """
    estimate = kl_estimate(logprobs, ref_logprobs, config.kl_estimator)
    if config.kl_gradient == "k2":
        gradient = kl_estimate(logprobs, ref_logprobs, "k2")
        return gradient - gradient.detach() + estimate.detach()
    return ratio * estimate if config.kl_gradient == "weighted" else estimate


def kl_of_response(old_logprobs: tuple[float, ...], ref_logprobs: tuple[float, ...], estimator: str) -> float:
    """The KL of a whole response, a sum over its tokens, between the policy that sampled it and the reference.

    It is what ``grpo.kl_in=reward`` takes from the reward, times β (InstructGPT, arXiv 2203.02155, with an estimator of
    choice).
    """
    old, ref = (torch.tensor(values, dtype=torch.double) for values in (old_logprobs, ref_logprobs))
    return float(kl_estimate(old, ref, estimator).sum())
