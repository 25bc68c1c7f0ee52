# ruff: noqa: F722 (axis names in strings)
"""Weights for a generator whose numerics are not the trainer's."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.masked import cut, response_sum


def importance_weights(
    mismatch: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], config: GRPOConfig
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Weights of the policy term per token from ``mismatch`` = log π_old / π_rollout, and where a bound has changed
    one.

    w is a token's own ratio, or with ``tis_mode=sequence…`` the product over its response. With C = ``tis_clip`` and
    α = ``tis_low``: ``token`` and ``sequence`` are ``min(w, C)`` (truncated importance sampling; Yao et al., Your
    efficient RL framework secretly brings you off-policy RL training, 2025); ``token_mask`` and ``sequence_mask`` are w
    within [α, C] and 0 beyond it (IcePop: tokens, α = 0.5, C = 5; Team et al., arXiv 2510.18855. Masked importance
    sampling of sequences: Liu et al., When speed kills stability, 2025).
    """
    level, _, masks = config.tis_mode.partition("_")
    if level == "sequence":
        mismatch = cut(response_sum(mismatch, mask))[:, None].expand_as(mismatch)
    weights = mismatch.exp()
    assert config.tis_clip is not None, "the caller's own check"
    beyond = weights > config.tis_clip
    if not masks:
        return weights.clamp(max=config.tis_clip), beyond
    beyond = beyond | (weights < config.tis_low)
    return torch.where(beyond, 0.0, weights), beyond
