"""What can be chosen about the policy update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from nemo_magic.config_checks import (
    FLOAT32_MAX,
    CheckedConfig,
    NonNegativeFloat32,
    NonNegativeInt,
    OneOf,
    PositiveFloat32,
    PositiveInt,
)

AGGREGATIONS = ("token", "sequence", "constant", "microbatch")


@dataclass
class GRPOConfig(CheckedConfig):
    """Group relative policy optimisation (paper section 4.1), and what others have changed about it.

    docs/objective.md has the formula, the source and the test of every option. In short:

    Advantages. ``baseline``: the mean of the ``group``, its mean without the sample itself (``leave_one_out``), or a
    moving average of the ``role``'s rewards, which moves by 1 − ``role_decay`` with each. ``scale_by_std``: divide by
    the group's standard deviation, of the ``std`` that is named; the other baselines divide by nothing. ``no_spread``:
    what becomes of groups without spread: ``drop`` leaves them out of the loss, ``keep`` counts them in the mean, in
    the KL term and in the entropy. ``refill_rounds``: how often in a step such groups are replaced with more seeds.
    ``truncated``: what becomes of responses cut by the length limit: ``keep`` trains on them like any other, ``mask``
    counts them in their group's statistics only, ``drop`` leaves them out of both.

    Policy term. ``policy_loss``: ``clip`` (PPO, GRPO), ``gspo``, ``cispo``. ``ratio_clip_low``, ``ratio_clip_high``:
    the ratio is clipped to [1 − low, 1 + high]. ``dual_clip``: where A < 0 the ratio counts at most this much; null:
    without bound. ``max_log_ratio``: an upper bound of the log-ratio before exp.
    ``aggregation``: ``token`` means over all trained tokens of the step, ``sequence`` over trained responses, each a
    mean over its tokens, ``constant`` over trained responses, each a sum divided by ``constant_length``, and
    ``microbatch`` over the tokens of each microbatch, which weighs as many as its responses. ``minibatches``: optimizer
    steps per rollout; with exactly 1 the policy that samples is the policy that learns, and old log-probabilities are
    not computed.

    Importance sampling towards the generator's own log-probabilities: ``tis_clip`` bounds the weights from above (null:
    no weights), ``tis_mode`` says whether a weight is a token's or a whole response's, and whether one beyond the
    bounds is cut or is 0; ``tis_low`` is the lower bound of the latter.

    Further terms. ``kl_beta``: weight β of the KL to the reference policy; at 0 no reference pass is made. ``kl_in``:
    it is part of the ``loss``, or of the ``reward``. ``kl_gradient``: of the ``estimator`` as it stands, of ``k2``,
    or of the estimator ``weighted`` by π_θ / π_old. ``entropy_bonus``: weight of the entropy. ``reference_every``: the
    reference moves towards the policy after so many of its own steps (null: never), by the share ``reference_mix``: 1
    is a reset, a small share each step an average.

    An update whose gradient norm (before clipping) is not finite, or above ``skip_grad_norm`` (null: no bound), is not
    made, and ``max_skipped_updates`` of them in a row stop the run.
    """

    KEY: ClassVar[str] = "grpo"

    baseline: Annotated[str, OneOf("group", "leave_one_out", "role")] = "group"
    role_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.95
    scale_by_std: bool = True
    std: Annotated[str, OneOf("population", "sample")] = "population"
    no_spread: Annotated[str, OneOf("drop", "keep")] = "drop"
    refill_rounds: NonNegativeInt = 0
    truncated: Annotated[str, OneOf("keep", "mask", "drop")] = "keep"
    policy_loss: Annotated[str, OneOf("clip", "gspo", "cispo")] = "clip"
    ratio_clip_low: float = 0.2
    ratio_clip_high: NonNegativeFloat32 = 0.2
    dual_clip: Annotated[float, Interval(gt=1, le=FLOAT32_MAX)] | None = None
    max_log_ratio: Annotated[float, Interval(gt=0, le=20)] = 20.0
    aggregation: Annotated[str, OneOf(*AGGREGATIONS)] = "token"
    constant_length: PositiveInt | None = None
    minibatches: PositiveInt = 1
    tis_clip: Annotated[float, Interval(ge=1, le=FLOAT32_MAX)] | None = None
    tis_mode: Annotated[str, OneOf("token", "token_mask", "sequence", "sequence_mask")] = "token"
    tis_low: Annotated[float, Interval(ge=0, le=1)] = 0.0
    kl_beta: NonNegativeFloat32 = 0.0
    kl_estimator: Annotated[str, OneOf("k1", "k2", "k3")] = "k3"
    kl_in: Annotated[str, OneOf("loss", "reward")] = "loss"
    kl_gradient: Annotated[str, OneOf("estimator", "k2", "weighted")] = "estimator"
    entropy_bonus: NonNegativeFloat32 = 0.0
    reference_every: PositiveInt | None = None
    reference_mix: Annotated[float, Interval(gt=0, le=1)] = 1.0
    skip_grad_norm: PositiveFloat32 | None = None
    max_skipped_updates: PositiveInt = 5

    @property
    def kl_loss_beta(self) -> float:
        """β where the KL is a term of the loss; 0 where it is part of the reward."""
        return self.kl_beta if self.kl_in == "loss" else 0.0

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy that sampled is asked what it thought of its samples."""
        return self.minibatches > 1 or (self.kl_beta > 0 and self.kl_in == "reward")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio_clip_low < 1:
            raise ValueError(f"grpo.ratio_clip_low={self.ratio_clip_low} must be in [0, 1)")
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> list[str]:
        """Options that have no meaning beside each other."""
        problems = []
        if self.baseline != "group" and self.scale_by_std:
            problems.append(
                f"grpo.baseline={self.baseline} does not divide by a standard deviation: set grpo.scale_by_std=false"
            )
        if self.baseline == "role" and (self.refill_rounds or self.no_spread == "keep"):
            problems.append(
                "grpo.baseline=role trains on every group, whether it has spread or not: set grpo.refill_rounds=0 and "
                "grpo.no_spread=drop"
            )
        if self.policy_loss == "gspo" and self.aggregation != "sequence":
            problems.append(
                f"grpo.policy_loss=gspo is a mean over responses: set grpo.aggregation=sequence, which is "
                f"{self.aggregation}"
            )
        if self.dual_clip is not None and self.policy_loss != "clip":
            problems.append(f"grpo.dual_clip={self.dual_clip} is a bound of grpo.policy_loss=clip: set it to null")
        if (self.aggregation == "constant") != (self.constant_length is not None):
            problems.append(
                f"grpo.constant_length={self.constant_length} and grpo.aggregation={self.aggregation}: a length is "
                "needed where grpo.aggregation=constant, the longest response for instance, and read nowhere else"
            )
        if self.tis_clip is None and (self.tis_mode != "token" or self.tis_low > 0):
            problems.append(
                f"grpo.tis_mode={self.tis_mode} and grpo.tis_low={self.tis_low} are about weights that grpo.tis_clip="
                "null has none of: give it a bound, such as 2"
            )
        if self.tis_low > 0 and not self.tis_mode.endswith("_mask"):
            problems.append(
                f"grpo.tis_low={self.tis_low} is a bound beyond which weights are 0: set grpo.tis_mode=token_mask or "
                "sequence_mask"
            )
        if self.kl_beta == 0 and (self.kl_in != "loss" or self.kl_gradient != "estimator"):
            problems.append(
                f"grpo.kl_in={self.kl_in} and grpo.kl_gradient={self.kl_gradient} are about a KL term, and "
                "grpo.kl_beta=0: give it a weight"
            )
        if self.kl_in == "reward" and self.kl_gradient != "estimator":
            problems.append(
                f"grpo.kl_gradient={self.kl_gradient}: a reward has no gradient, set grpo.kl_gradient=estimator"
            )
        if self.kl_beta == 0 and self.reference_every is not None:
            problems.append(
                f"grpo.reference_every={self.reference_every} moves a reference that grpo.kl_beta=0 does not keep: set "
                "it to null"
            )
        if self.reference_every is None and self.reference_mix != 1:
            problems.append(
                f"grpo.reference_mix={self.reference_mix} is read where the reference moves: set grpo.reference_every"
            )
        return problems
