"""What can be chosen about the policy update."""

from __future__ import annotations

from dataclasses import dataclass

_CHOICES = {
    "kl_estimator": ("k1", "k2", "k3"),
    "aggregation": ("token", "sequence"),
    "truncated": ("keep", "mask", "drop"),
}


@dataclass
class GRPOConfig:
    """Group relative policy optimisation (paper section 4.1).

    ``ratio_clip_low``, ``ratio_clip_high``: the ratio is clipped to [1 − low, 1 + high]. ``kl_beta``: weight β of the
    KL term against the reference policy; at 0 no reference pass is made. ``aggregation``: ``token`` means over all
    trained tokens of the step, ``sequence`` over trained responses, each a mean over its tokens. ``truncated``: what
    becomes of responses cut by the length limit: ``keep`` trains on them like any other, ``mask`` counts them in their
    group's statistics only, ``drop`` leaves them out of both. ``minibatches``: optimizer steps per rollout; with
    exactly 1 the policy that samples is the policy that learns, and old log-probabilities are not computed.
    ``scale_by_std``: divide advantages by the group's standard deviation. ``tis_clip``: truncated importance sampling
    towards the generator's own log-probabilities, weights clipped at this; null: none.

    An update whose gradient norm (before clipping) is not finite, or above ``skip_grad_norm`` (null: no bound), is not
    made, and ``max_skipped_updates`` of them in a row stop the run.
    """

    ratio_clip_low: float = 0.2
    ratio_clip_high: float = 0.2
    kl_beta: float = 0.0
    kl_estimator: str = "k3"
    aggregation: str = "token"
    truncated: str = "keep"
    minibatches: int = 1
    scale_by_std: bool = True
    tis_clip: float | None = None
    skip_grad_norm: float | None = None
    max_skipped_updates: int = 5

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"grpo.{key}={getattr(self, key)!r} must be one of: {', '.join(choices)}")
        if not 0 <= self.ratio_clip_low < 1:
            raise ValueError(f"grpo.ratio_clip_low={self.ratio_clip_low} must be in [0, 1)")
        if self.ratio_clip_high < 0:
            raise ValueError(f"grpo.ratio_clip_high={self.ratio_clip_high} must be ≥ 0")
        if self.kl_beta < 0:
            raise ValueError(f"grpo.kl_beta={self.kl_beta} must be ≥ 0")
        for key in ("minibatches", "max_skipped_updates"):
            if getattr(self, key) < 1:
                raise ValueError(f"grpo.{key}={getattr(self, key)} must be at least 1")
        if self.tis_clip is not None and not self.tis_clip >= 1:
            raise ValueError(f"grpo.tis_clip={self.tis_clip} must be at least 1, or null")
        if self.skip_grad_norm is not None and not self.skip_grad_norm > 0:
            raise ValueError(f"grpo.skip_grad_norm={self.skip_grad_norm} must be greater than 0, or null")
