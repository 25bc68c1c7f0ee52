"""The empirical game: attackers (rows) against defenders (columns), of which only played games are known.

All of it is about zero-sum matrices: the attacker wants a cell high, the defender low. ``Outcomes`` are the games that
were played; what follows from their means is bootstrapped over seeds, because every cell is played on the same seeds
and two games on one seed are no two independent ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Matrix = npt.NDArray[np.float64]

ELO = 400 / np.log(10)
"""Rating points per logit: 400 points are odds of ten to one."""

_PRIOR_SD = 3.0
"""Logits. Weak, and enough to keep ratings finite where nobody ever won."""


@dataclass(frozen=True)
class Equilibrium:
    """Mixtures from which neither side gains by moving away, and the game's value between them.

    ``attacker`` and ``defender`` hold a probability per row and per column. Where there are several equilibria this is
    one of them; the value is the same in all.
    """

    attacker: Matrix
    defender: Matrix
    value: float


@dataclass(frozen=True)
class Gap:
    """What each side could still gain against the other's mixture by playing its best pure answer; both ≥ 0."""

    attacker: float
    defender: float

    @property
    def total(self) -> float:
        """NashConv: 0 exactly in an equilibrium."""
        return self.attacker + self.defender


@dataclass(frozen=True)
class IntervalEstimate:
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, replicates: Matrix, confidence: float = 0.95) -> IntervalEstimate:
        """``replicates``: the same figure of every resampled matrix."""
        low, high = interval(replicates, confidence)
        return cls(value, float(low), float(high))


@dataclass(frozen=True)
class Ratings:
    """Strengths in Elo points: an attacker wins with probability ``1 / (1 + 10^((defender − attacker) / 400))``.

    The first defender is at 0. ``misfit``: root mean square, over the cells, of what these strengths leave unexplained
    of the win rates; a game with cycles has no ladder, and a large misfit says so.
    """

    attackers: Matrix
    defenders: Matrix
    misfit: float


@dataclass(frozen=True)
class Forgotten:
    """Row ``attacker`` was held down to ``before`` by the earlier defender ``held_by``, and wins ``now`` against the
    last one. ``low``: lower end of the interval of ``now − before``."""

    attacker: int
    held_by: int
    before: float
    now: float
    low: float


def equilibrium(payoff: Matrix) -> Equilibrium:
    """Solve the zero-sum game by a linear programme.

    Raises:
        ValueError: ``payoff`` is no finite matrix of at least one row and column.
    """
    game = _checked(payoff)
    rows, columns = game.shape
    # Maximise v over mixtures x with x'A ≥ v in every column; the constraints' multipliers are the other mixture.
    solved = optimize.linprog(
        c=np.append(np.zeros(rows), -1.0),
        A_ub=np.column_stack([-game.T, np.ones(columns)]),
        b_ub=np.zeros(columns),
        A_eq=np.append(np.ones(rows), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * rows + [(None, None)],
        method="highs",
    )
    if not solved.success:
        raise ValueError(f"the game of {rows} × {columns} could not be solved: {solved.message}")
    return Equilibrium(_mixture(solved.x[:-1]), _mixture(-solved.ineqlin.marginals), float(solved.x[-1]) + 0.0)


def best_response_gap(payoff: Matrix, attacker: Matrix, defender: Matrix) -> Gap:
    """How far two mixtures are from being best answers to each other.

    Raises:
        ValueError: a mixture has not one share per row or column.
    """
    game = _checked(payoff)
    for name, mixture, size in (("attacker", attacker, game.shape[0]), ("defender", defender, game.shape[1])):
        if len(mixture) != size:
            raise ValueError(f"the {name}'s mixture has {len(mixture)} shares, the game {size}")
    played = float(attacker @ game @ defender)
    return Gap(float((game @ defender).max()) - played, played - float((attacker @ game).min()))


def exploitability(payoff: Matrix, defender: int = -1) -> float:
    """What the best attacker of the game gets against this defender alone, above the game's value (≥ 0)."""
    return float(payoff[:, defender].max()) - equilibrium(payoff).value


@dataclass(frozen=True)
class Outcomes:
    """Games by cell and seed: ``sums[i, j, s]`` over the ``counts[i, j, s]`` judged games of attacker ``i`` against
    defender ``j`` on seed ``s``. ``strata``: a number per seed; how many seeds there are of each is by design.

    Raises ValueError where the shapes differ or a cell has no judged game at all.
    """

    sums: Matrix
    counts: Matrix
    strata: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.strata is not None and len(self.strata) != self.sums.shape[-1]:
            raise ValueError(f"{len(self.strata)} strata are given for {self.sums.shape[-1]} seeds")
        if self.sums.ndim != 3 or self.sums.shape != self.counts.shape or not self.sums.size:
            raise ValueError(f"outcomes need (attackers, defenders, seeds): {self.sums.shape}, {self.counts.shape}")
        empty = np.argwhere(self.counts.sum(axis=2) == 0)
        if len(empty):
            raise ValueError(f"attacker {empty[0][0]} has no judged game against defender {empty[0][1]}")

    def means(self) -> Matrix:
        """The matrix of the game, ``(attackers, defenders)``."""
        return self.sums.sum(axis=2) / self.counts.sum(axis=2)

    def resampled(self, replicates: int, seed: int = 0) -> Matrix:
        """The matrix on seeds drawn with replacement, from each stratum as many as it has: ``(replicates, attackers,
        defenders)``; NaN where a cell has no game on the seeds that were drawn."""
        rng = np.random.default_rng(seed)
        strata = np.zeros(self.sums.shape[2]) if self.strata is None else np.asarray(self.strata)
        weights = np.zeros((replicates, len(strata)))
        for stratum in np.unique(strata):
            of = np.flatnonzero(strata == stratum)
            weights[:, of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), size=replicates)
        drawn = np.einsum("rs,ads->rad", weights, self.counts)
        with np.errstate(invalid="ignore"):
            return np.einsum("rs,ads->rad", weights, self.sums) / drawn


def interval(replicates: Matrix, confidence: float) -> tuple[Matrix, Matrix]:
    """Percentile interval over the first axis; what is NaN in a replicate does not count in it."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
    return low, high


def whole(replicates: Matrix) -> Matrix:
    """The resampled matrices of which every cell is known.

    Raises:
        ValueError: there is none.
    """
    found: Matrix = replicates[np.isfinite(replicates).all(axis=(1, 2))]
    if not len(found):
        raise ValueError("some cell has so few seeds that no resampled matrix is whole: play more seeds")
    return found


def ratings(means: Matrix, counts: Matrix) -> Ratings:
    """Strengths of both sides by maximum likelihood (the Rasch model), under a weak prior around the average.

    ``means``: win rates of the attackers, 0..1; ``counts``: games per cell. A rating is of its side: attackers never
    meet attackers.
    """
    game = _checked(means)
    rows, columns = game.shape

    def logits(x: Matrix) -> Matrix:
        return x[-1] + x[:rows, None] - x[None, rows:-1]

    def loss(x: Matrix) -> tuple[float, Matrix]:
        z = logits(x)
        away = counts * (special.expit(z) - game)
        value = float((counts * (np.logaddexp(0, z) - game * z)).sum() + (x**2).sum() / (2 * _PRIOR_SD**2))
        slope = np.concatenate([away.sum(axis=1), -away.sum(axis=0), [away.sum()]])
        return value, slope + x / _PRIOR_SD**2

    options: dict[str, Any] = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 10_000}
    found = optimize.minimize(loss, np.zeros(rows + columns + 1), jac=True, method="L-BFGS-B", options=options).x
    attackers, defenders = found[:rows] + found[-1], found[rows:-1]
    misfit = float(np.sqrt(np.mean((special.expit(logits(found)) - game) ** 2)))
    return Ratings((attackers - defenders[0]) * ELO, (defenders - defenders[0]) * ELO, misfit)


def forgotten(
    matrix: Matrix,
    replicates: Matrix,
    old: Sequence[int],
    margin: float = 0.05,
    confidence: float = 0.95,
) -> list[Forgotten]:
    """Where the game went in a circle: rows of ``old`` that an earlier defender held down and the last one does not.

    Each is compared with the earlier defender that held it best. It counts when it wins more than ``margin`` above
    that, and when the interval of the difference is above 0 (per row: with many rows some are found by chance).
    Strongest first. ``old``: the rows that the last defender could have learned from.
    """
    found = []
    for row in old if matrix.shape[1] > 1 else ():
        held_by = int(matrix[row, :-1].argmin())
        before, now = float(matrix[row, held_by]), float(matrix[row, -1])
        low = float(interval(replicates[:, row, -1] - replicates[:, row, held_by], confidence)[0])
        if now - before > margin and low > 0:
            found.append(Forgotten(row, held_by, before, now, low))
    return sorted(found, key=lambda one: one.before - one.now)


def _checked(payoff: Matrix) -> Matrix:
    game = np.asarray(payoff, dtype=np.float64)
    if game.ndim != 2 or not game.size or not np.isfinite(game).all():
        raise ValueError(f"a game is a matrix of finite numbers, this one has the shape {game.shape}")
    return game


def _mixture(shares: Matrix) -> Matrix:
    """What the solver found, without its rounding: no share below 0, and a sum of 1."""
    kept = np.clip(shares, 0, None)
    return kept / kept.sum()
