"""What can be chosen about the policy update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from nemo_magic.config_checks import FLOAT32_MAX, CheckedConfig, NonNegativeFloat32, OneOf, PositiveFloat32, PositiveInt


@dataclass
class GRPOConfig(CheckedConfig):
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

    KEY: ClassVar[str] = "grpo"

    ratio_clip_low: float = 0.2
    ratio_clip_high: NonNegativeFloat32 = 0.2
    kl_beta: NonNegativeFloat32 = 0.0
    kl_estimator: Annotated[str, OneOf("k1", "k2", "k3")] = "k3"
    aggregation: Annotated[str, OneOf("token", "sequence")] = "token"
    truncated: Annotated[str, OneOf("keep", "mask", "drop")] = "keep"
    minibatches: PositiveInt = 1
    scale_by_std: bool = True
    tis_clip: Annotated[float, Interval(ge=1, le=FLOAT32_MAX)] | None = None
    skip_grad_norm: PositiveFloat32 | None = None
    max_skipped_updates: PositiveInt = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio_clip_low < 1:
            raise ValueError(f"grpo.ratio_clip_low={self.ratio_clip_low} must be in [0, 1)")
