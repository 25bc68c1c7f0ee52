"""Equilibria, gaps, intervals, ratings and forgetting, of games whose solutions are known and of sampled games."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_magic.game.payoff import best_response_gap
from nemo_magic.league.equilibrium import (
    IntervalEstimate,
    Matrix,
    Outcomes,
    complete_matrices,
    equilibrium,
    exploitability,
    interval,
)
from nemo_magic.league.ratings import fit_ratings, forgetting

PENNIES = np.array([[1.0, -1.0], [-1.0, 1.0]])
ROCK_PAPER_SCISSORS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
# nashpy 0.0.43: Game(LARGE).linear_program(), shares above 1e-12; the gap is that of two uniform mixtures.
LARGE = np.random.default_rng(20261125).uniform(-1, 1, (30, 40))
LARGE_VALUE = -0.05516344194316396
LARGE_UNIFORM_GAP = 0.4954904854139101
LARGE_ATTACKER = {
    2: 0.014124163151432128, 3: 0.08240694312803033, 8: 0.03815323705265484, 9: 0.10071111574561019,
    10: 0.01632107035024672, 11: 0.03716438621204254, 14: 0.06638142888824212, 15: 0.02217897555642736,
    17: 0.07100785594895818, 18: 0.056455464345759765, 19: 0.08333457852656653, 22: 0.09103033030573326,
    23: 0.1160139441522939, 24: 0.009432363700036438, 26: 0.04450520078730012, 28: 0.15077894214866008,
}  # fmt: skip
LARGE_DEFENDER = {
    1: 0.09301163374446181, 2: 0.06144639181818302, 5: 0.02273956478546943, 7: 0.10659936769062563,
    8: 0.0776973089533344, 14: 0.1595592307663848, 24: 0.05072156653093677, 26: 0.041355567002500954,
    28: 0.07475884614968341, 29: 0.0884409298594476, 30: 0.05263450177864656, 31: 0.07543161971230002,
    33: 0.020079395796491123, 34: 0.030453411457769544, 36: 0.03526816408693741, 38: 0.009802499866827836,
}  # fmt: skip


def shares(of: dict[int, float], size: int) -> Matrix:
    return np.array([of.get(i, 0.0) for i in range(size)])


def uniform(size: int) -> Matrix:
    return np.full(size, 1 / size)


def sampled(rates: Matrix, seeds: int = 200, games: int = 2) -> Outcomes:
    """Games by chance at these rates; every cell on the same seeds."""
    counts = np.full((*rates.shape, seeds), float(games))
    wins = np.random.default_rng(5).binomial(games, rates[..., None], counts.shape).astype(float)
    return Outcomes(wins, counts)


@pytest.mark.process
@pytest.mark.parametrize(
    ("game", "attacker", "defender", "value"),
    [
        (PENNIES, uniform(2), uniform(2), 0.0),
        (ROCK_PAPER_SCISSORS, uniform(3), uniform(3), 0.0),
        # Solved by hand: 1·x + 3·(1−x) = 2·x + 0·(1−x) at x = 3/4; 1·y + 2·(1−y) = 3·y at y = 1/2.
        (np.array([[1.0, 2.0], [3.0, 0.0]]), [0.75, 0.25], [0.5, 0.5], 1.5),
        (np.array([[0.2, 0.9], [0.1, 0.3]]), [1.0, 0.0], [1.0, 0.0], 0.2),  # a saddle point
        (LARGE, shares(LARGE_ATTACKER, 30), shares(LARGE_DEFENDER, 40), LARGE_VALUE),
    ],
    ids=["matching pennies", "rock-paper-scissors", "by hand", "saddle point", "random 30 x 40 against nashpy"],
)
def test_mixtures_and_value_of_a_known_game_are_found(
    game: Matrix, attacker: Matrix, defender: Matrix, value: float
) -> None:
    result = equilibrium(game)
    assert result.value == pytest.approx(value, abs=1e-6)
    assert result.attacker == pytest.approx(np.asarray(attacker), abs=1e-6)
    assert result.defender == pytest.approx(np.asarray(defender), abs=1e-6)
    assert best_response_gap(game, result.attacker, result.defender).total == pytest.approx(0, abs=1e-6)


def test_neither_side_gains_by_leaving_the_equilibrium_of_any_game() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        game = rng.uniform(size=rng.integers(1, 9, size=2)).round(1)  # rounded: many ties, several equilibria
        result = equilibrium(game)
        # Weak duality: these two bounds meet in the value of the game and nowhere else.
        assert (result.attacker @ game).min() == pytest.approx(result.value, abs=1e-9)
        assert (game @ result.defender).max() == pytest.approx(result.value, abs=1e-9)
        assert result.attacker.sum() == pytest.approx(1)
        assert result.defender.min() >= 0


def test_the_gap_is_what_best_answers_gain() -> None:
    assert best_response_gap(LARGE, uniform(30), uniform(40)).total == pytest.approx(LARGE_UNIFORM_GAP, abs=1e-6)
    gap = best_response_gap(PENNIES, np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    assert (gap.attacker, gap.defender) == (0.0, 2.0)
    with pytest.raises(ValueError, match="the defender's mixture has 3 shares, the game 2"):
        best_response_gap(PENNIES, uniform(2), uniform(3))


def test_one_who_always_shows_heads_is_exploitable_by_all_there_is_to_win() -> None:
    assert exploitability(PENNIES) == pytest.approx(1.0)
    assert exploitability(np.array([[0.3, 0.5], [0.1, 0.2]]), 0) == pytest.approx(0.0)
    # The last defender loses to the first attacker: 0.9, and a mixture of both holds everybody to less.
    cycle = np.array([[0.1, 0.9], [0.8, 0.1]])
    assert exploitability(cycle) == pytest.approx(0.9 - equilibrium(cycle).value)


def test_a_planted_cycle_is_found_and_a_ladder_has_none() -> None:
    # Attackers rock, paper, scissors in this order; each defender learned to hold the newest and lost the one before.
    planted = sampled(np.array([[0.1, 0.4, 0.8], [0.7, 0.1, 0.5], [0.5, 0.8, 0.1]]))
    (result,) = forgetting(planted.means(), planted.resample(500), old=[0])
    assert (result.attacker, result.held_by) == (0, 0)
    assert result.now == pytest.approx(0.8, abs=0.06)
    assert result.before == pytest.approx(0.1, abs=0.06)
    assert 0.5 < result.low < result.now - result.before
    ladder = sampled(np.array([[0.5, 0.2, 0.1], [0.7, 0.4, 0.2], [0.9, 0.6, 0.3]]))
    assert forgetting(ladder.means(), ladder.resample(500), old=[0, 1, 2]) == []


def test_what_chance_alone_explains_is_no_cycle() -> None:
    flat = sampled(np.full((4, 5), 0.5), seeds=20)
    assert forgetting(flat.means(), flat.resample(500), old=range(4)) == []
    assert forgetting(np.array([[0.5]]), np.array([[[0.5]]]), old=[0]) == []  # one defender has forgotten nothing


def test_intervals_hold_the_true_rate_about_as_often_as_they_say() -> None:
    rate, inside = 0.3, 0
    for seed in range(200):
        wins = np.random.default_rng(seed).binomial(1, rate, size=(1, 1, 80)).astype(float)
        low, high = interval(Outcomes(wins, np.ones_like(wins)).resample(400, seed), 0.9)
        inside += bool(low[0, 0] <= rate <= high[0, 0])
    assert 0.83 < inside / 200 < 0.95


def test_games_on_one_seed_are_no_independent_games() -> None:
    won = np.random.default_rng(0).binomial(1, 0.5, size=(1, 1, 50)).astype(float)
    once, often = Outcomes(won, np.ones_like(won)), Outcomes(won * 20, np.full_like(won, 20.0))
    assert np.ptp(interval(often.resample(300), 0.95)) == pytest.approx(np.ptp(interval(once.resample(300), 0.95)))


def test_how_many_seeds_there_are_of_a_label_is_not_left_to_chance() -> None:
    # Two kinds of seeds without any spread within: nothing is left to chance but how many of each were drawn.
    won = np.array([[[1.0] * 10 + [0.0] * 10]])
    mixed, apart = Outcomes(won, np.ones_like(won)), Outcomes(won, np.ones_like(won), [0] * 10 + [1] * 10)
    assert np.ptp(mixed.resample(200)) > 0.2
    assert np.ptp(apart.resample(200)) == 0
    with pytest.raises(ValueError, match="19 strata are given for 20 seeds"):
        Outcomes(won, np.ones_like(won), [0] * 19)


def test_a_figure_has_an_interval_and_too_few_seeds_are_refused() -> None:
    outcomes = sampled(np.array([[0.2, 0.8], [0.7, 0.1]]))
    resampled = np.array([equilibrium(one).value for one in complete_matrices(outcomes.resample(200))])
    value = IntervalEstimate.of(equilibrium(outcomes.means()).value, resampled)
    assert value.low < value.value < value.high
    assert value.high - value.low < 0.15
    # One cell was judged on a single seed of many: hardly any resampled matrix has all its cells.
    counts = np.ones((1, 2, 3))
    counts[0, 1, :2] = 0
    with pytest.raises(ValueError, match="play more seeds"):
        complete_matrices(np.full((3, 1, 2), np.nan))
    resampled = Outcomes(counts, counts).resample(50)
    assert 0 < len(complete_matrices(resampled)) < 50


def test_ratings_explain_the_games_they_come_from() -> None:
    attackers, defenders = np.array([0.0, 200.0, 350.0]), np.array([0.0, 150.0, 600.0])
    rates = 1 / (1 + 10 ** ((defenders[None] - attackers[:, None]) / 400))
    result = fit_ratings(rates, np.full(rates.shape, 1e6))
    assert result.attackers == pytest.approx(attackers, abs=0.5)
    assert result.defenders == pytest.approx(defenders, abs=0.5)
    assert result.misfit < 1e-3


def test_a_cycle_has_no_ladder_and_one_who_never_won_a_finite_rating() -> None:
    wins = (ROCK_PAPER_SCISSORS + 1) / 2
    assert fit_ratings(wins, np.full((3, 3), 100.0)).misfit == pytest.approx(np.sqrt(1 / 6), abs=1e-3)
    never = fit_ratings(np.array([[0.0, 0.0], [0.9, 0.4]]), np.full((2, 2), 50.0))
    assert np.isfinite(never.attackers).all()
    assert never.attackers[0] < never.attackers[1] - 400
    assert never.defenders[0] == 0 < never.defenders[1]


def test_what_is_no_game_is_refused() -> None:
    with pytest.raises(ValueError, match="a matrix of finite numbers"):
        equilibrium(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="a matrix of finite numbers"):
        equilibrium(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="attacker 1 has no judged game against defender 0"):
        Outcomes(np.zeros((2, 1, 3)), np.array([[[1.0, 0, 0]], [[0.0, 0, 0]]]))
    with pytest.raises(ValueError, match="attackers, defenders, seeds"):
        Outcomes(np.zeros((2, 1)), np.zeros((2, 1)))
