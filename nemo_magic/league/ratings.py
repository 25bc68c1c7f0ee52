"""Elo ratings of attackers and defenders, and forgetting: old attackers that the last defender no longer holds down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from nemo_magic.league.equilibrium import Matrix, finite_matrix, interval

ELO = 400 / np.log(10)
"""Rating points per logit: 400 points are odds of ten to one."""

_PRIOR_SD = 3.0
"""Logits. Weak, and enough to keep ratings finite where nobody ever won."""


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
class Forgetting:
    """Row ``attacker`` was held down to ``before`` by the earlier defender ``held_by``, and wins ``now`` against the
    last one. ``low``: lower end of the interval of ``now − before``."""

    attacker: int
    held_by: int
    before: float
    now: float
    low: float


def fit_ratings(means: Matrix, counts: Matrix) -> Ratings:
    """Strengths of both sides by maximum likelihood (the Rasch model), under a weak prior around the average.

    ``means``: win rates of the attackers, 0..1; ``counts``: games per cell; both ``(attackers, defenders)``. Ratings
    compare participants of one side only through the other side: attackers never play against attackers.

    Raises:
        ValueError: ``means`` is no finite matrix of at least one row and column.
    """
    game = finite_matrix(means)
    rows, columns = game.shape

    def logits(x: Matrix) -> Matrix:
        return x[-1] + x[:rows, None] - x[None, rows:-1]

    def loss(x: Matrix) -> tuple[float, Matrix]:
        z = logits(x)
        residual = counts * (special.expit(z) - game)
        value = float((counts * (np.logaddexp(0, z) - game * z)).sum() + (x**2).sum() / (2 * _PRIOR_SD**2))
        gradient = np.concatenate([residual.sum(axis=1), -residual.sum(axis=0), [residual.sum()]])
        return value, gradient + x / _PRIOR_SD**2

    options: dict[str, Any] = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 10_000}
    best = optimize.minimize(loss, np.zeros(rows + columns + 1), jac=True, method="L-BFGS-B", options=options).x
    attackers, defenders = best[:rows] + best[-1], best[rows:-1]
    misfit = float(np.sqrt(np.mean((special.expit(logits(best)) - game) ** 2)))
    return Ratings((attackers - defenders[0]) * ELO, (defenders - defenders[0]) * ELO, misfit)


def forgetting(
    matrix: Matrix,
    replicates: Matrix,
    old: Sequence[int],
    margin: float = 0.05,
    confidence: float = 0.95,
) -> list[Forgetting]:
    """Where the game went in a circle: rows of ``old`` that an earlier defender held down and the last one does not.

    ``matrix``: win rates, ``(attackers, defenders)``; ``replicates``: the same, resampled. ``old``: the rows that the
    last defender could have learned from. Each is compared with the earlier defender that held it best. It counts when
    it wins more than ``margin`` above that, and when the interval of the difference is above 0 (per row: with many rows
    some are found by chance). Strongest first.
    """
    forgotten = []
    for row in old if matrix.shape[1] > 1 else ():
        held_by = int(matrix[row, :-1].argmin())
        before, now = float(matrix[row, held_by]), float(matrix[row, -1])
        low = float(interval(replicates[:, row, -1] - replicates[:, row, held_by], confidence)[0])
        if now - before > margin and low > 0:
            forgotten.append(Forgetting(row, held_by, before, now, low))
    return sorted(forgotten, key=lambda one: one.before - one.now)
