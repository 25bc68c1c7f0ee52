"""Which role learns (Algorithm 1): a small pure state machine.

Invariants: the state after ``n`` calls of ``advance`` depends on the configuration and on the metrics of these ``n``
rounds only, and a saved and restored state continues as the unbroken one does. By steps, every phase lasts exactly its
role's number of rounds, whatever the metrics; by metric, every phase lasts between ``min_steps`` and ``max_steps``
rounds, and no value outlives the phase it was measured in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from statistics import mean
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from nemo_magic.config_checks import CheckedConfig, FiniteFloat, OneOf, PositiveInt
from nemo_magic.game.episode import Role

NO_METRICS: Mapping[str, float] = MappingProxyType({})


@dataclass
class MetricSwitchConfig(CheckedConfig):
    """``by: metric``: a phase lasts until its learner has won enough, in the mean of the last ``window`` values.

    A defender phase ends when that mean of the metric ``name`` is ≤ ``low``, an attacker phase when it is ≥ ``high``:
    never before ``min_steps`` rounds of the phase, always after ``max_steps``. A window that is not full decides
    nothing, so a ``window`` above ``min_steps`` is what delays the switch. A round that does not report the metric, or
    reports no finite value, adds nothing to the window and ends a phase at ``max_steps`` only.
    """

    KEY: ClassVar[str] = "game.schedule.metric"

    name: str = "train_rollouts/asr"
    low: FiniteFloat = 0.1
    high: FiniteFloat = 0.3
    window: PositiveInt = 5
    min_steps: PositiveInt = 5
    max_steps: PositiveInt = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise ValueError("game.schedule.metric.name is empty: name a metric of the run, such as train_rollouts/asr")
        if self.low > self.high:
            raise ValueError(
                f"game.schedule.metric.low={self.low} must be at most game.schedule.metric.high={self.high}"
            )
        for key in ("window", "min_steps"):
            if getattr(self, key) > self.max_steps:
                raise ValueError(
                    f"game.schedule.metric.{key}={getattr(self, key)} must be at most "
                    f"game.schedule.metric.max_steps={self.max_steps}: no phase lasts longer"
                )

    def reached(self, role: Role, values: tuple[float, ...]) -> bool:
        """Whether ``role`` has won enough, by a window of values."""
        if len(values) < self.window:
            return False
        # ``mean`` sums exactly: a constant window has its own value as its mean, and no sum overflows.
        return mean(values) <= self.low if role is Role.DEFENDER else mean(values) >= self.high


@dataclass
class ScheduleConfig(CheckedConfig):
    """When the learner changes.

    ``by: steps``: a phase of a role lasts ``freq`` × its ratio rounds. ``by: metric``: as long as ``metric`` says.
    ``start`` learns first. With a single role in ``train_roles`` that role learns from first to last, whatever
    ``start`` says; phases of the same length follow one another all the same, so that what is done at the end of a
    phase (a snapshot, an opponent for the pool) is done as often as in a game of two learners.
    """

    KEY: ClassVar[str] = "game.schedule"

    freq: PositiveInt = 15
    ratio_defender: PositiveInt = 1
    ratio_attacker: PositiveInt = 1
    start: Annotated[str, OneOf(*Role)] = "defender"
    by: Annotated[str, OneOf("steps", "metric")] = "steps"
    train_roles: list[str] = field(default_factory=lambda: ["attacker", "defender"])
    metric: MetricSwitchConfig = field(default_factory=MetricSwitchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.train_roles:
            raise ValueError("game.schedule.train_roles is empty: name attacker, defender or both")
        for role in self.train_roles:
            if role not in tuple(Role):
                raise ValueError(f"game.schedule.train_roles={role!r} must be one of: attacker, defender")
        if len(set(self.train_roles)) < len(self.train_roles):
            raise ValueError(f"game.schedule.train_roles={self.train_roles} names a role twice")

    def learners(self) -> tuple[Role, ...]:
        """The roles that learn, in the order of their phases."""
        first = Role(self.start)
        return tuple(role for role in (first, first.opponent) if role in self.train_roles)

    def phase_steps(self, role: Role) -> int:
        """T_D or T_A of Algorithm 1 in rounds, where phases go by steps."""
        return self.freq * (self.ratio_defender if role is Role.DEFENDER else self.ratio_attacker)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where the alternation stands: ``step`` rounds done, in phase ``phase`` (from 0), ``step_in_phase`` of it done.

    ``window``: by metric, the last values of the metric in this phase, oldest first; by steps, empty.
    """

    learner: Role
    step: int = 0
    phase: int = 0
    step_in_phase: int = 0
    window: tuple[float, ...] = ()

    @classmethod
    def begin(cls, config: ScheduleConfig) -> Schedule:
        """The state before the first round."""
        return cls(learner=config.learners()[0])

    def ends_phase(self, config: ScheduleConfig, metrics: Mapping[str, float] = NO_METRICS) -> bool:
        """Whether the round about to be played, with these metrics, is the last of its phase."""
        if config.by == "steps":
            # ≥: a run may be resumed with a smaller freq than it was saved with.
            return self.step_in_phase + 1 >= config.phase_steps(self.learner)
        switch, values = config.metric, self._values(config, metrics)
        if self.step_in_phase + 1 >= switch.max_steps:
            return True
        if self.step_in_phase + 1 < switch.min_steps or not _reported(switch, metrics):
            return False
        return switch.reached(self.learner, values)

    def advance(self, config: ScheduleConfig, metrics: Mapping[str, float] = NO_METRICS) -> Schedule:
        """The state after one more round, whose metrics were these."""
        if self.ends_phase(config, metrics):
            other = self.learner.opponent
            return Schedule(other if other in config.train_roles else self.learner, self.step + 1, self.phase + 1)
        window = self._values(config, metrics)
        return Schedule(self.learner, self.step + 1, self.phase, self.step_in_phase + 1, window)

    def steps_left(self, config: ScheduleConfig) -> int:
        """Rounds that are certain to remain in the present phase, the one about to be played included.

        Exact by steps. By metric, the fewest there can be: those to ``min_steps``, or to a full window.
        """
        if config.by == "steps":
            return max(1, config.phase_steps(self.learner) - self.step_in_phase)
        switch = config.metric
        certain = max(switch.min_steps - self.step_in_phase, switch.window - len(self.window))
        return max(1, min(certain, switch.max_steps - self.step_in_phase))

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it; ``from_dict`` gives exactly this state back."""
        return asdict(self) | {"learner": self.learner.value, "window": list(self.window)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Schedule:
        """The state that ``to_dict`` saved.

        Raises:
            ValueError: a key is missing, unknown, or has a value that no schedule has.
        """
        check_keys("schedule", saved, [f.name for f in fields(cls)])
        if saved["learner"] not in tuple(Role):
            raise ValueError(f"schedule.learner={saved['learner']!r} must be one of: attacker, defender")
        step, phase, step_in_phase = (check_count("schedule", saved, k) for k in ("step", "phase", "step_in_phase"))
        if step_in_phase > step:
            raise ValueError(f"schedule.step_in_phase={step_in_phase} must be at most schedule.step={step}")
        if phase > step - step_in_phase:
            raise ValueError(
                f"schedule.phase={phase} must be at most {step - step_in_phase}, the rounds of earlier phases"
            )
        window = saved["window"]
        if not isinstance(window, list | tuple) or not all(isinstance(v, float) and math.isfinite(v) for v in window):
            raise ValueError(f"schedule.window={window!r} must be a list of finite floats")
        if len(window) > step_in_phase:
            raise ValueError(f"schedule.window has {len(window)} values of {step_in_phase} rounds of its phase")
        return cls(Role(saved["learner"]), step, phase, step_in_phase, tuple(window))

    def _values(self, config: ScheduleConfig, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The window with this round's value, where there is one."""
        if config.by == "steps":
            return ()
        new = (float(metrics[config.metric.name]),) if _reported(config.metric, metrics) else ()
        return (*self.window, *new)[-config.metric.window :]


def learning_rounds(config: ScheduleConfig, role: Role | str, steps: int) -> int:
    """In how many of the first ``steps`` rounds ``role`` learns: exact by steps; by metric, the most there can be."""
    schedule, rounds, switch = Schedule.begin(config), 0, config.metric
    for _ in range(steps):
        learns = schedule.learner == role
        rounds += learns
        # The most: the role's own phases go on to max_steps, the opponent's end as soon as a value can end them.
        won = {switch.name: switch.low if schedule.learner is Role.DEFENDER else switch.high}
        schedule = schedule.advance(config, NO_METRICS if learns else won)
    return rounds


def check_keys(what: str, saved: Mapping[str, Any], keys: list[str]) -> None:
    """Refuse saved state that has other keys than these.

    Raises:
        ValueError: naming the first key that is missing or unknown.
    """
    for key in keys:
        if key not in saved:
            raise ValueError(f"{what}.{key} is missing from the saved state")
    for key in saved:
        if key not in keys:
            raise ValueError(f"{what}.{key} is unknown: the saved state has {', '.join(keys)}")


def check_count(what: str, saved: Mapping[str, Any], key: str) -> int:
    """``saved[key]``, a number of rounds or values.

    Raises:
        ValueError: naming the key, when the value is not a whole number ≥ 0.
    """
    value = saved[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what}.{key}={value!r} must be a whole number, at least 0")
    return value


def _reported(switch: MetricSwitchConfig, metrics: Mapping[str, float]) -> bool:
    return switch.name in metrics and math.isfinite(metrics[switch.name])
