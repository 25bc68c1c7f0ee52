"""Past opponents: who is kept, who is drawn for a phase, and whom each game of it is played against.

Invariants: everything is a function of the configuration, the run's seed and the saved state, so that a resumed run
draws as the unbroken one would have. A role's newest member is the role as it is now: whoever is drawn is either that,
or a self that no longer learns. The first self (it is where the run began, and where a resumed one builds from) and the
newest are never evicted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import check_count, check_keys

DRAWS = ("latest", "uniform", "pfsp", "mixture")
GIB = 1 << 30


class PoolFull(ValueError):
    """The disk budget holds less than the first and the newest self of every role."""


@dataclass
class MixtureConfig:
    """``draw: mixture``: how much of each draw; the three are scaled to a sum of 1."""

    latest: float = 0.5
    uniform: float = 0.25
    pfsp: float = 0.25

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"game.pool.mixture.{one.name}={value} must be a finite number, at least 0")
        if not self.latest + self.uniform + self.pfsp > 0:
            raise ValueError("game.pool.mixture is all 0: give latest, uniform or pfsp a share")


@dataclass
class PoolConfig:
    """Whom a learner meets: the opponent as it is, or its past selves, of which one is kept at the end of each phase.

    ``draw``: ``latest`` (the paper), ``uniform`` over all that are kept, ``pfsp`` (in proportion to the opponent's win
    rate to the power of ``pfsp_power``: those who still win are met more often), or a ``mixture`` of these. A phase has
    ``opponents`` slots, which are drawn at its beginning and share its games evenly; one opponent may have several.
    Win rates are counted in training; what was counted against earlier learners counts ``memory`` as much with every
    draw, and who was hardly met is taken to win every other game.
    ``max_disk_gib``: of all kept selves of both roles; null: all are kept. ``max_host_gib``: of each rank's host
    memory, for selves that were drawn, so that they need not be read again.
    """

    draw: str = "latest"
    opponents: int = 5
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    pfsp_power: float = 2.0
    memory: float = 0.5
    max_disk_gib: float | None = None
    max_host_gib: float = 4.0

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise ValueError(f"game.pool.draw={self.draw!r} must be one of: {', '.join(DRAWS)}")
        if self.opponents < 1:
            raise ValueError(f"game.pool.opponents={self.opponents} must be at least 1")
        if not (math.isfinite(self.pfsp_power) and self.pfsp_power >= 0):
            raise ValueError(f"game.pool.pfsp_power={self.pfsp_power} must be a finite number, at least 0")
        if not 0 <= self.memory <= 1:
            raise ValueError(f"game.pool.memory={self.memory} must be between 0 and 1")
        if self.max_disk_gib is not None and not self.max_disk_gib > 0:
            raise ValueError(f"game.pool.max_disk_gib={self.max_disk_gib} must be greater than 0, or null")
        if not self.max_host_gib >= 0:
            raise ValueError(f"game.pool.max_host_gib={self.max_host_gib} must be at least 0 (0: none is kept)")

    def shares(self) -> Mapping[str, float]:
        """How much of each draw there is."""
        if self.draw == "mixture":
            return asdict(self.mixture)
        return {self.draw: 1.0}


@dataclass(frozen=True, slots=True)
class Member:
    """A past self. ``phase``: at whose end it was kept, -1 for the first self; ``size`` on disk in bytes;
    ``wins`` of ``games`` on harmful seeds, counted less the older they are."""

    name: str
    phase: int
    size: int
    wins: float = 0.0
    games: float = 0.0

    @property
    def win_rate(self) -> float:
        """Estimated; 1/2 without games."""
        return (self.wins + 1) / (self.games + 2)


@dataclass(frozen=True, slots=True)
class Pool:
    """``members`` of each role, oldest first; ``slots``: whom the present phase is played against, by name."""

    members: Mapping[Role, tuple[Member, ...]] = field(default_factory=dict)
    slots: tuple[str, ...] = ()

    def join(
        self, config: PoolConfig, role: Role, name: str, phase: int, size: int
    ) -> tuple[Pool, list[tuple[Role, str]]]:
        """The pool with one more self of ``role``, the newest, and whom it had to let go for it.

        Who is kept again under its name, because its phase went on after all, takes its own place. Over the disk
        budget, somebody of the role with most members goes: the one whose phase is closest between its neighbours'
        (of equals the oldest), so that what remains stays spread over the whole game.

        Raises:
            PoolFull: nobody is left who could go.
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
                    f"game.pool.max_disk_gib={config.max_disk_gib} holds less than the first and the newest self of "
                    f"every role, {sum(one.size for of_role in members.values() for one in of_role) / GIB:.3g} GiB"
                )
            out = min(range(1, len(kept) - 1), key=lambda i: kept[i + 1].phase - kept[i - 1].phase)
            evicted.append((largest, kept[out].name))
            members[largest] = (*kept[:out], *kept[out + 1 :])
            if largest is role.opponent:
                # A run that ended within a phase may go on with it, and then without whom it let go.
                slots = tuple(kept[-1].name if name == kept[out].name else name for name in slots)
        return Pool(members, slots), evicted

    def drawn(self, config: PoolConfig, role: Role, seed: int, phase: int) -> Pool:
        """The pool at the beginning of a phase that is played against ``role``.

        Slots are equally spaced over the members' shares, from a start that is drawn: a share of 2.4 slots is 2 or 3
        of them.
        """
        chances = self.chances(config, role)
        start = random.Random(f"{seed}/pool/{phase}").random()
        bounds = list(accumulate(chances.values()))
        points = [(start + place) / config.opponents * bounds[-1] for place in range(config.opponents)]
        names = list(chances)
        # The last bound is what rounding has left of 1.
        slots = [
            next((n for n, bound in zip(names, bounds, strict=True) if point < bound), names[-1]) for point in points
        ]
        faded = tuple(
            replace(one, wins=one.wins * config.memory, games=one.games * config.memory) for one in self.members[role]
        )
        return Pool({**self.members, role: faded}, tuple(slots))

    def chances(self, config: PoolConfig, role: Role) -> dict[str, float]:
        """Name → its share of a phase against ``role``, oldest first; they add up to 1."""
        members = self.members[role]
        best = max(one.win_rate for one in members)
        draws = {
            "latest": [float(one is members[-1]) for one in members],
            "uniform": [1.0 for _ in members],
            # Relative to the best of them: a high power must not round everybody down to 0.
            "pfsp": [(one.win_rate / best) ** config.pfsp_power for one in members],
        }
        shares, found = config.shares(), [0.0] * len(members)
        for name, share in shares.items():
            weights = draws[name]
            for i, weight in enumerate(weights):
                found[i] += share / sum(shares.values()) * weight / sum(weights)
        return {one.name: chance for one, chance in zip(members, found, strict=True)}

    def opponent(self, step: int, group: int = 0) -> str:
        """Who plays a group of a step; steps too are dealt out in turn."""
        return self.slots[(step + group) % len(self.slots)]

    def is_present(self, role: Role, name: str) -> bool:
        """Whether this is ``role`` as it is now."""
        return self.members[role][-1].name == name

    def counted(self, role: Role, results: Mapping[str, tuple[float, float]]) -> Pool:
        """The pool after more games: name → (its wins, its games)."""
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
        for place in slots:
            if place not in names:
                raise ValueError(f"pool.slots has {place!r}, who is no member: {', '.join(sorted(names))}")
        return cls(members, slots)


def _member(what: str, row: Mapping[str, Any]) -> Member:
    check_keys(what, row, [one.name for one in fields(Member)])
    for key in ("wins", "games"):
        if not isinstance(row[key], int | float) or not math.isfinite(row[key]) or row[key] < 0:
            raise ValueError(f"{what}.{key}={row[key]!r} must be a finite number, at least 0")
    if not isinstance(row["phase"], int) or row["phase"] < -1:
        raise ValueError(f"{what}.phase={row['phase']!r} must be a whole number, at least -1")
    return Member(row["name"], row["phase"], check_count(what, row, "size"), float(row["wins"]), float(row["games"]))
