"""Whose turn it is to learn (Algorithm 1): a small pure state machine.

Invariants: every phase lasts exactly its role's number of steps; the state after ``n`` calls of ``advance`` depends on
the configuration and ``n`` only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemo_magic.game.episode import Role


@dataclass
class ScheduleConfig:
    """Alternation by steps: a phase of a role lasts ``freq`` × its ratio steps."""

    freq: int = 15
    ratio_defender: int = 1
    ratio_attacker: int = 1
    start: str = "defender"

    def __post_init__(self) -> None:
        if self.start not in tuple(Role):
            raise ValueError(f"game.schedule.start={self.start!r} must be one of: attacker, defender")
        for key in ("freq", "ratio_defender", "ratio_attacker"):
            if getattr(self, key) < 1:
                raise ValueError(f"game.schedule.{key}={getattr(self, key)} must be at least 1")

    def phase_steps(self, role: Role) -> int:
        """T_D or T_A of Algorithm 1, in optimisation rounds."""
        return self.freq * (self.ratio_defender if role is Role.DEFENDER else self.ratio_attacker)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where the alternation stands: ``step`` rounds done, in phase ``phase`` (from 0), ``step_in_phase`` of it done."""

    learner: Role
    step: int = 0
    phase: int = 0
    step_in_phase: int = 0

    @classmethod
    def begin(cls, config: ScheduleConfig) -> Schedule:
        return cls(learner=Role(config.start))

    def ends_phase(self, config: ScheduleConfig) -> bool:
        """Whether the round about to be played is the last of its phase."""
        return self.step_in_phase + 1 == config.phase_steps(self.learner)

    def advance(self, config: ScheduleConfig) -> Schedule:
        """The state after one more round."""
        if self.ends_phase(config):
            return Schedule(self.learner.opponent, self.step + 1, self.phase + 1, 0)
        return replace(self, step=self.step + 1, step_in_phase=self.step_in_phase + 1)
