"""The opponent pool: which snapshots are kept, which are drawn for a phase, and which one plays each of its games.

Invariants: everything is a function of the configuration, the run's seed and the saved state, so that a resumed run
draws as the unbroken one would have. A role's newest member is the role as it is now; every other member is a snapshot
that no longer learns. The first member (where the run began, and what a resumed one builds from) and the newest are
never evicted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from nemo_magic.config_checks import (
    CheckedConfig,
    FiniteNonNegativeFloat,
    Fraction,
    NonNegativeFloat,
    OneOf,
    PositiveFloat,
    PositiveInt,
)
from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import check_count, check_keys

GIB = 1 << 30


class PoolFull(ValueError):
    """The disk budget holds less than the first and the newest snapshot of every role."""


@dataclass
class MixtureConfig(CheckedConfig):
    """``draw: mixture``: the weight of each draw; the three are scaled to a sum of 1."""

    KEY: ClassVar[str] = "game.pool.mixture"

    latest: FiniteNonNegativeFloat = 0.5
    uniform: FiniteNonNegativeFloat = 0.25
    pfsp: FiniteNonNegativeFloat = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.latest + self.uniform + self.pfsp > 0:
            raise ValueError("game.pool.mixture is all 0: give latest, uniform or pfsp a share")


@dataclass
class PoolConfig(CheckedConfig):
    """What a learner plays against: the opponent as it is, or its snapshots, one of which is kept after each phase.

    ``draw``: ``latest`` (the paper), ``uniform`` over all snapshots, ``pfsp`` (prioritised fictitious self-play: in
    proportion to the snapshot's win rate to the power of ``pfsp_power``), or a ``mixture`` of these. A phase has
    ``opponents`` slots, which are drawn at its beginning and share its games evenly; one snapshot may have several.
    Win rates are counted in training. Every draw multiplies earlier counts by ``memory``; a snapshot with few games is
    taken to win half of them.
    ``max_disk_gib``: of all snapshots of both roles; null: no limit. ``max_host_gib``: of each rank's host memory, to
    cache the snapshots that were drawn.
    """

    KEY: ClassVar[str] = "game.pool"

    draw: Annotated[str, OneOf("latest", "uniform", "pfsp", "mixture")] = "latest"
    opponents: PositiveInt = 5
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    pfsp_power: FiniteNonNegativeFloat = 2.0
    memory: Fraction = 0.5
    max_disk_gib: PositiveFloat | None = None
    max_host_gib: NonNegativeFloat = 4.0

    def shares(self) -> Mapping[str, float]:
        """Draw → its weight; weights need not add up to 1."""
        if self.draw == "mixture":
            return asdict(self.mixture)
        return {self.draw: 1.0}


@dataclass(frozen=True, slots=True)
class Member:
    """A snapshot. ``phase``: the one it was taken after, -1 for the first member; ``size``: bytes on disk; ``wins`` of
    ``games``: on harmful seeds, older ones count less."""

    name: str
    phase: int
    size: int
    wins: float = 0.0
    games: float = 0.0

    @property
    def win_rate(self) -> float:
        """Estimated with Laplace's rule of succession: 1/2 without games."""
        return (self.wins + 1) / (self.games + 2)


@dataclass(frozen=True, slots=True)
class Pool:
    """``members`` of each role, oldest first; ``slots``: the opponents of the present phase, by name."""

    members: Mapping[Role, tuple[Member, ...]] = field(default_factory=dict)
    slots: tuple[str, ...] = ()

    def add(
        self, config: PoolConfig, role: Role, name: str, phase: int, size: int
    ) -> tuple[Pool, list[tuple[Role, str]]]:
        """The pool with one more snapshot of ``role``, the newest, and what it evicted for that.

        A name that is there already (its phase went on after all) is replaced. Over the disk budget, a member of the
        role with most members is evicted: the one whose phase is closest between its neighbours' (of equals the
        oldest), so that the rest stays spread over the whole game.

        Raises:
            PoolFull: no member may be evicted.
        """
        before = [member for member in self.members.get(role, ()) if member.name != name]
        members = {**self.members, role: (*before, Member(name, phase, size))}
        evicted: list[tuple[Role, str]] = []
        slots = self.slots
        budget = math.inf if config.max_disk_gib is None else config.max_disk_gib * GIB
        while sum(one.size for of_role in members.values() for one in of_role) > budget:
            largest = max(Role, key=lambda one: len(members.get(one, ())))
            kept = members.get(largest, ())
            if len(kept) < 3:
                raise PoolFull(
                    f"game.pool.max_disk_gib={config.max_disk_gib} holds less than the first and the newest snapshot "
                    f"of every role, {sum(one.size for of_role in members.values() for one in of_role) / GIB:.3g} GiB"
                )
            index = min(range(1, len(kept) - 1), key=lambda i: kept[i + 1].phase - kept[i - 1].phase)
            evicted.append((largest, kept[index].name))
            members[largest] = (*kept[:index], *kept[index + 1 :])
            if largest is role.opponent:
                # A run that ended within a phase may go on with it, and then without what it evicted.
                slots = tuple(kept[-1].name if name == kept[index].name else name for name in slots)
        return Pool(members, slots), evicted

    def draw(self, config: PoolConfig, role: Role, seed: int, phase: int) -> Pool:
        """The pool at the beginning of ``phase``, which is played against ``role``: its slots are drawn.

        Systematic sampling: slots are equally spaced over the members' probabilities, from a start that is drawn, so
        that 2.4 expected slots are 2 or 3.
        """
        probabilities = self.probabilities(config, role)
        start = random.Random(f"{seed}/pool/{phase}").random()
        bounds = list(accumulate(probabilities.values()))
        points = [(start + slot) / config.opponents * bounds[-1] for slot in range(config.opponents)]
        names = list(probabilities)
        # The last bound is what rounding has left of 1.
        slots = [
            next((n for n, bound in zip(names, bounds, strict=True) if point < bound), names[-1]) for point in points
        ]
        faded = tuple(
            replace(one, wins=one.wins * config.memory, games=one.games * config.memory) for one in self.members[role]
        )
        return Pool({**self.members, role: faded}, tuple(slots))

    def probabilities(self, config: PoolConfig, role: Role) -> dict[str, float]:
        """Name → its expected share of a phase against ``role``, oldest first; they add up to 1."""
        members = self.members[role]
        best = max(one.win_rate for one in members)
        draws = {
            "latest": [float(one is members[-1]) for one in members],
            "uniform": [1.0 for _ in members],
            # Relative to the best of them: a high power must not round all of them down to 0.
            "pfsp": [(one.win_rate / best) ** config.pfsp_power for one in members],
        }
        shares, probabilities = config.shares(), [0.0] * len(members)
        for name, share in shares.items():
            weights = draws[name]
            for i, weight in enumerate(weights):
                probabilities[i] += share / sum(shares.values()) * weight / sum(weights)
        return {one.name: value for one, value in zip(members, probabilities, strict=True)}

    def opponent_for(self, step: int, group: int = 0) -> str:
        """The name of the opponent of a group of a step: slots take turns, over groups and over steps."""
        return self.slots[(step + group) % len(self.slots)]

    def is_current(self, role: Role, name: str) -> bool:
        """Whether ``name`` is ``role`` as it is now."""
        return self.members[role][-1].name == name

    def add_results(self, role: Role, results: Mapping[str, tuple[float, float]]) -> Pool:
        """The pool after more games. ``results``: name of a member of ``role`` → (its wins, its games)."""
        members = [
            replace(one, wins=one.wins + results[one.name][0], games=one.games + results[one.name][1])
            if one.name in results
            else one
            for one in self.members[role]
        ]
        return replace(self, members={**self.members, role: tuple(members)})

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it; ``from_dict`` gives exactly this state back."""
        members = {str(role): [asdict(one) for one in kept] for role, kept in self.members.items()}
        return {"members": members, "slots": list(self.slots)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Pool:
        """The state that ``to_dict`` saved.

        Raises:
            ValueError: a key is missing, unknown, or has a value that no pool has.
        """
        check_keys("pool", saved, ["members", "slots"])
        members: dict[Role, tuple[Member, ...]] = {}
        for role, rows in saved["members"].items():
            if role not in tuple(Role):
                raise ValueError(f"pool.members.{role} is no role: attacker, defender")
            members[Role(role)] = tuple(_member(f"pool.members.{role}[{i}]", row) for i, row in enumerate(rows))
        slots = tuple(saved["slots"])
        names = {one.name for kept in members.values() for one in kept}
        for name in slots:
            if name not in names:
                raise ValueError(f"pool.slots has {name!r}, which is no member: {', '.join(sorted(names))}")
        return cls(members, slots)


def _member(what: str, row: Mapping[str, Any]) -> Member:
    check_keys(what, row, [one.name for one in fields(Member)])
    for key in ("wins", "games"):
        if not isinstance(row[key], int | float) or not math.isfinite(row[key]) or row[key] < 0:
            raise ValueError(f"{what}.{key}={row[key]!r} must be a finite number, at least 0")
    if not isinstance(row["phase"], int) or row["phase"] < -1:
        raise ValueError(f"{what}.phase={row['phase']!r} must be a whole number, at least -1")
    return Member(row["name"], row["phase"], check_count(what, row, "size"), float(row["wins"]), float(row["games"]))
