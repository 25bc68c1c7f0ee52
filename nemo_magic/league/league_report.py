"""The report of a league: matrices, equilibrium, exploitability, ratings and forgetting, as JSON holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_magic.game.episode import Label
from nemo_magic.game.payoff import best_response_gap, one_hot
from nemo_magic.league.equilibrium import (
    IntervalEstimate,
    Matrix,
    Outcomes,
    complete_matrices,
    equilibrium,
    exploitability,
    interval,
)
from nemo_magic.league.games import Games, GamesByPair, outcomes, share_matrix
from nemo_magic.league.ratings import fit_ratings, forgetting


@dataclass(frozen=True)
class LeagueAxes:
    """Who plays, in the order of training. ``old``: attackers that the last defender could have learned from;
    ``newest``: the last attacker of the run."""

    attackers: Sequence[str]
    defenders: Sequence[str]
    old: Sequence[str]
    newest: str


@dataclass(frozen=True)
class LeagueReportSettings:
    """``harmful_share``: how much harmful seeds count in the payoff, as in training. ``replicates`` resampled matrices,
    intervals at ``confidence``; ``seed`` of the resampling."""

    harmful_share: float
    replicates: int = 500
    confidence: float = 0.95
    seed: int = 0


def league_report(axes: LeagueAxes, games: GamesByPair, settings: LeagueReportSettings) -> dict[str, Any]:
    """Everything about the league, as JSON holds it.

    ``asr`` is of harmful seeds; ``payoff`` is the defender's reward, negated, over both labels, so that the attacker
    wants it high. Both are zero-sum games.

    Raises:
        ValueError: a pair has no judged game.
    """
    attackers, defenders = axes.attackers, axes.defenders
    label_shares = {str(Label.HARMFUL): settings.harmful_share, str(Label.BENIGN): 1 - settings.harmful_share}
    asr = outcomes(attackers, defenders, games, "success")
    payoff = outcomes(attackers, defenders, games, "loss", label_shares)
    strengths = fit_ratings(asr.means(), asr.counts.sum(axis=2))
    forgotten = forgetting(
        asr.means(),
        asr.resample(settings.replicates, settings.seed),
        [attackers.index(name) for name in axes.old],
        confidence=settings.confidence,
    )
    return {
        "attackers": list(attackers),
        "defenders": list(defenders),
        "games": {name: _count_games(games[name, defenders[-1]]) for name in attackers},
        "settings": asdict(settings),
        "asr": _zero_sum_game(axes, asr, settings),
        "payoff": _zero_sum_game(axes, payoff, settings),
        "ratings": {
            "attackers": dict(zip(attackers, strengths.attackers.round(1).tolist(), strict=True)),
            "defenders": dict(zip(defenders, strengths.defenders.round(1).tolist(), strict=True)),
            "misfit": strengths.misfit,
        },
        "forgotten": [
            asdict(one) | {"attacker": attackers[one.attacker], "held_by": defenders[one.held_by]} for one in forgotten
        ],
        "over_refusal": share_matrix(attackers, defenders, games, "refused"),
        "useful": share_matrix(attackers, defenders, games, "useful"),
    }


def _zero_sum_game(axes: LeagueAxes, results: Outcomes, settings: LeagueReportSettings) -> dict[str, Any]:
    """One zero-sum game: its matrix, equilibrium, and how the last pair and the last defender stand in it."""
    matrix = results.means()
    replicates = results.resample(settings.replicates, settings.seed)
    low, high = interval(replicates, settings.confidence)
    solution = equilibrium(matrix)

    complete = complete_matrices(replicates)
    values, worst = np.array([equilibrium(one).value for one in complete]), complete[:, :, -1].max(axis=1)

    def with_interval(value: float, resampled: Matrix) -> dict[str, float]:
        return asdict(IntervalEstimate.of(value, resampled, settings.confidence))

    newest = one_hot(len(axes.attackers), axes.attackers.index(axes.newest))
    gap = best_response_gap(matrix, newest, one_hot(len(axes.defenders), -1))
    return {
        "matrix": matrix.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "value": with_interval(solution.value, values),
        "equilibrium": {
            "attackers": _mixture(axes.attackers, solution.attacker),
            "defenders": _mixture(axes.defenders, solution.defender),
        },
        "last_defender": {
            "worst_attacker": axes.attackers[int(matrix[:, -1].argmax())],
            "worst": with_interval(float(matrix[:, -1].max()), worst),
            "exploitability": with_interval(exploitability(matrix), worst - values),
        },
        "last_pair_gap": {"attacker": gap.attacker, "defender": gap.defender, "total": gap.total},
    }


def _count_games(games: Games) -> dict[str, int]:
    """How many games of a pair there are of each label, and how many have no reward."""
    return {
        "harmful": sum(game["label"] == Label.HARMFUL for game in games),
        "benign": sum(game["label"] == Label.BENIGN for game in games),
        "undecided": sum(game["loss"] is None for game in games),
    }


def _mixture(names: Sequence[str], shares: Matrix) -> dict[str, float]:
    return {name: float(share) for name, share in zip(names, shares, strict=True) if share > 1e-9}
