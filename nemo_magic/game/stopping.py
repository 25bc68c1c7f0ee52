"""When a run ends before its ``game.max_steps``: after so many rounds or epochs, or once a metric stays past a bound.

Pure, as the schedule is: the state is one number, saved and restored with the game.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from nemo_magic.config_checks import CheckedConfig, FiniteFloat, PositiveInt
from nemo_magic.game.schedule import check_count, check_keys


@dataclass
class EarlyStopConfig(CheckedConfig):
    """The run ends early, and the learning-rate schedule keeps the length that ``game.max_steps`` gives it.

    ``at_step``: after that many rounds (the paper: 300 steps, early stop at 200). ``metric``: once ``patience``
    consecutive values of it are less than ``below``, or greater than ``above``. Only rounds that report a finite value
    count, so that ``val_rollouts/asr`` with ``patience: 2`` means two validations in a row.
    """

    KEY: ClassVar[str] = "game.early_stop"

    at_step: PositiveInt | None = None
    metric: str | None = None
    below: FiniteFloat | None = None
    above: FiniteFloat | None = None
    patience: PositiveInt = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric == "":
            raise ValueError("game.early_stop.metric is empty: name a metric such as val_rollouts/asr, or null")
        for key in ("below", "above"):
            bound = getattr(self, key)
            if bound is not None and self.metric is None:
                raise ValueError(f"game.early_stop.{key}={bound} needs game.early_stop.metric, which is null")
        if self.metric is not None and (self.below is None) == (self.above is None):
            raise ValueError(
                f"game.early_stop.metric={self.metric!r} needs exactly one of below and above, has "
                f"below={self.below} and above={self.above}"
            )

    def passed(self, value: float) -> bool:
        """Whether a value of ``metric`` is past the bound."""
        if self.below is not None:
            return value < self.below
        return self.above is not None and value > self.above


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """``count``: how many of the last values of the metric, without a break, were past the bound."""

    count: int = 0

    def after(self, config: EarlyStopConfig, step: int, metrics: Mapping[str, float]) -> EarlyStop:
        """The state after the metrics of round ``step``; those before the first round (0) do not count."""
        if config.metric is None or step < 1:
            return self
        value = metrics.get(config.metric, math.nan)
        if not math.isfinite(value):
            return self
        return replace(self, count=self.count + 1 if config.passed(value) else 0)

    def stop_reason(self, config: EarlyStopConfig, step: int) -> str | None:
        """Why the run ends after ``step`` rounds, in words; None where it goes on."""
        if config.at_step is not None and step >= config.at_step:
            return f"game.early_stop.at_step={config.at_step} is reached"
        if config.metric is None or self.count < config.patience:
            return None
        bound = f"below {config.below:g}" if config.below is not None else f"above {config.above:g}"
        times = "once" if self.count == 1 else f"{self.count} times in a row"
        return f"{config.metric} was {bound} {times} (game.early_stop.patience={config.patience})"

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it; ``from_dict`` gives exactly this state back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> EarlyStop:
        """The state that ``to_dict`` saved.

        Raises:
            ValueError: a key is missing, unknown, or has a value that no state has.
        """
        check_keys("early_stop", saved, [f.name for f in fields(cls)])
        return cls(check_count("early_stop", saved, "count"))


def total_steps(max_steps: int, max_epochs: int | None, batch_size: int, num_seeds: int) -> int:
    """Rounds of a run: ``max_steps``, or as many as show ``max_epochs`` × ``num_seeds`` seeds, ``batch_size`` a round.

    The smaller of the two; a last batch that is not full counts as a round.
    """
    if max_epochs is None:
        return max_steps
    return min(max_steps, -(-max_epochs * num_seeds // batch_size))
