"""Nash equilibrium and exploitability of the empirical zero-sum game, and their bootstrap intervals.

Rows are attackers, who want a cell high; columns are defenders, who want it low. ``Outcomes`` hold the games that were
played. The bootstrap draws seeds, because every cell is played on the same seeds and two games on one seed are not
independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

Matrix = npt.NDArray[np.float64]


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


def equilibrium(payoff: Matrix) -> Equilibrium:
    """Solve the zero-sum game by a linear programme.

    Raises:
        ValueError: ``payoff`` is no finite matrix of at least one row and column.
    """
    game = finite_matrix(payoff)
    rows, columns = game.shape
    # Maximise v over mixtures x with x'A ≥ v in every column; the constraints' multipliers are the other mixture.
    solution = optimize.linprog(
        c=np.append(np.zeros(rows), -1.0),
        A_ub=np.column_stack([-game.T, np.ones(columns)]),
        b_ub=np.zeros(columns),
        A_eq=np.append(np.ones(rows), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * rows + [(None, None)],
        method="highs",
    )
    if not solution.success:
        raise ValueError(f"the game of {rows} × {columns} could not be solved: {solution.message}")
    return Equilibrium(_mixture(solution.x[:-1]), _mixture(-solution.ineqlin.marginals), float(solution.x[-1]) + 0.0)


def exploitability(payoff: Matrix, defender: int = -1) -> float:
    """What the best attacker of the game gets against this defender alone, above the game's value (≥ 0).

    Raises:
        ValueError: ``payoff`` is no finite matrix of at least one row and column.
    """
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

    def resample(self, replicates: int, seed: int = 0) -> Matrix:
        """The matrix on seeds drawn with replacement, as many from each stratum as it has: ``(replicates, attackers,
        defenders)``; NaN where a cell has no game on the drawn seeds."""
        rng = np.random.default_rng(seed)
        strata = np.zeros(self.sums.shape[2]) if self.strata is None else np.asarray(self.strata)
        weights = np.zeros((replicates, len(strata)))
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), replicates)
        counts = np.einsum("rs,ads->rad", weights, self.counts)
        with np.errstate(invalid="ignore"):
            return np.einsum("rs,ads->rad", weights, self.sums) / counts


def interval(replicates: Matrix, confidence: float) -> tuple[Matrix, Matrix]:
    """Lower and upper end of the percentile interval over the first axis; NaN does not count."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
    return low, high


def complete_matrices(replicates: Matrix) -> Matrix:
    """The resampled matrices without a NaN.

    Raises:
        ValueError: there is none.
    """
    complete: Matrix = replicates[np.isfinite(replicates).all(axis=(1, 2))]
    if not len(complete):
        raise ValueError("some cell has so few seeds that no resampled matrix is whole: play more seeds")
    return complete


def finite_matrix(payoff: Matrix) -> Matrix:
    """``payoff`` as floats.

    Raises:
        ValueError: it is no finite matrix of at least one row and column.
    """
    game = np.asarray(payoff, dtype=np.float64)
    if game.ndim != 2 or not game.size or not np.isfinite(game).all():
        raise ValueError(f"a game is a matrix of finite numbers, this one has the shape {game.shape}")
    return game


def _mixture(shares: Matrix) -> Matrix:
    """The solver's shares without its rounding errors: none below 0, and a sum of 1."""
    clipped = np.clip(shares, 0, None)
    return clipped / clipped.sum()
