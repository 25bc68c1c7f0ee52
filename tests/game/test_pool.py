"""Which snapshots are kept, which are drawn, and which one plays each game."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.game.episode import Role
from nemo_magic.game.pool import GIB, MixtureConfig, Pool, PoolConfig, PoolFull

A, D = Role.ATTACKER, Role.DEFENDER
X = {"name": "x", "phase": 1, "size": 1, "wins": 0.0, "games": 0.0}


def pool_of(*names: str, role: Role = A, config: PoolConfig | None = None, size: int = 1) -> Pool:
    """A role's snapshots of phases 1, 3, 5, …, after its first."""
    pool = Pool()
    for i, name in enumerate(names):
        pool, _ = pool.add(config or PoolConfig(), role, name, 2 * i - 1, size)
    return pool


def names(pool: Pool, role: Role = A) -> list[str]:
    return [member.name for member in pool.members[role]]


FOUR = pool_of("start", "phase-01", "phase-03", "phase-05")


def test_the_paper_meets_its_latest_opponent_only() -> None:
    drawn = FOUR.draw(PoolConfig(), A, seed=1, phase=6)
    assert set(drawn.slots) == {"phase-05"}
    assert drawn.is_current(A, "phase-05")
    assert not drawn.is_current(A, "start")


def test_uniform_draws_are_even_and_slots_are_shares_rounded() -> None:
    config = PoolConfig(draw="uniform", opponents=6)
    counts = Counter[str]()
    for phase in range(400):
        slots = Counter(FOUR.draw(config, A, seed=1, phase=phase).slots)
        assert all(slots[name] in (1, 2) for name in names(FOUR))  # 6 / 4 = 1.5 slots each
        counts += slots
    assert all(count / 2400 == pytest.approx(0.25, abs=0.02) for count in counts.values())


def test_a_snapshot_that_still_wins_is_drawn_more_often() -> None:
    beaten = FOUR.add_results(A, {"start": (0, 98), "phase-01": (98, 98), "phase-03": (49, 98), "phase-05": (0, 98)})
    probabilities = beaten.probabilities(PoolConfig(draw="pfsp", pfsp_power=2), A)
    assert probabilities["phase-01"] == pytest.approx(0.99**2 / (0.99**2 + 0.5**2 + 2 * 0.01**2))
    assert probabilities["phase-01"] / probabilities["phase-03"] == pytest.approx((0.99 / 0.5) ** 2)
    assert beaten.probabilities(PoolConfig(draw="pfsp", pfsp_power=0), A) == pytest.approx(
        dict.fromkeys(names(FOUR), 0.25)
    )
    # A power that would round all shares to 0 leaves the best.
    assert beaten.probabilities(PoolConfig(draw="pfsp", pfsp_power=1e6), A)["phase-01"] == pytest.approx(1)


def test_a_snapshot_without_games_is_taken_to_win_half_of_them() -> None:
    assert set(FOUR.probabilities(PoolConfig(draw="pfsp"), A).values()) == {0.25}


def test_a_mixture_is_what_it_says() -> None:
    config = PoolConfig(draw="mixture", mixture=MixtureConfig(latest=2, uniform=1, pfsp=1))
    met = FOUR.add_results(A, {"start": (8, 8)})
    pfsp = met.probabilities(PoolConfig(draw="pfsp"), A)
    mixture = met.probabilities(config, A)
    assert mixture["phase-05"] == pytest.approx(0.5 + 0.25 * 0.25 + 0.25 * pfsp["phase-05"])
    assert mixture["start"] == pytest.approx(0.25 * 0.25 + 0.25 * pfsp["start"])
    assert sum(mixture.values()) == pytest.approx(1)


def test_games_against_earlier_learners_count_less() -> None:
    config = PoolConfig(draw="pfsp", memory=0.5)
    pool = FOUR.add_results(A, {"start": (6, 8)})
    drawn = pool.draw(config, A, seed=1, phase=2).add_results(A, {"start": (1, 4)})
    start = drawn.members[A][0]
    assert (start.wins, start.games) == (4, 8)
    assert start.win_rate == pytest.approx(0.5)


def test_every_slot_gets_as_many_games_as_another_over_a_phase() -> None:
    pool = Pool({}, ("a", "b", "c", "d", "e"))
    assert set(Counter(pool.opponent_for(step, group) for step in range(15) for group in range(64)).values()) == {192}
    assert Counter(pool.opponent_for(step) for step in range(15)) == dict.fromkeys("abcde", 3)
    assert len({pool.opponent_for(0, group) for group in range(5)}) == 5


def test_draws_depend_on_seed_and_phase_alone() -> None:
    config = PoolConfig(draw="uniform", opponents=3)
    many = pool_of(*(f"phase-{i:02d}" for i in range(20)))
    draw = many.draw(config, A, seed=1, phase=4).slots
    assert many.draw(config, A, seed=1, phase=4).slots == draw
    assert many.draw(config, A, seed=1, phase=6).slots != draw
    assert many.draw(config, A, seed=2, phase=4).slots != draw


def test_over_budget_the_first_and_the_newest_stay_and_the_rest_is_spread() -> None:
    config = PoolConfig(max_disk_gib=5)
    pool, gone = Pool(), list[str]()
    for phase in range(-1, 31, 2):
        name = "start" if phase < 0 else f"phase-{phase:02d}"
        pool, evicted = pool.add(config, A, name, phase, GIB)
        gone += [name for _, name in evicted]
        assert names(pool)[0] == "start"
        assert names(pool)[-1] == name
        assert len(names(pool)) <= 5
    phases = [member.phase for member in pool.members[A]]
    assert max(b - a for a, b in pairwise(phases)) <= 16  # no hole of more than half the game
    assert sorted(gone + names(pool)) == sorted(["start", *(f"phase-{i:02d}" for i in range(1, 31, 2))])


def test_the_budget_is_both_roles_and_the_larger_pool_gives() -> None:
    config = PoolConfig(max_disk_gib=6)
    pool = pool_of("start", "phase-01", "phase-03", "phase-05", config=config, size=GIB)
    pool, evicted = pool.add(config, D, "start", -1, GIB)
    assert evicted == []
    pool, evicted = pool.add(config, D, "phase-00", 0, GIB)
    assert evicted == []
    pool, evicted = pool.add(config, D, "phase-02", 2, GIB)
    assert evicted == [(A, "phase-01")]
    with pytest.raises(PoolFull, match="max_disk_gib=1 holds less than the first and the newest snapshot"):
        pool_of("start", "phase-01", config=PoolConfig(max_disk_gib=1), size=GIB)


def test_a_snapshot_of_a_phase_that_went_on_after_all_replaces_the_earlier_one() -> None:
    again, evicted = FOUR.add(PoolConfig(), A, "phase-05", 5, 7)
    assert (names(again), again.members[A][-1].size, evicted) == (names(FOUR), 7, [])


def test_the_newest_takes_the_slots_of_a_member_evicted_within_a_phase() -> None:
    config = PoolConfig(draw="uniform", opponents=8, max_disk_gib=5)
    pool = pool_of("start", "phase-01", "phase-03", "phase-05", config=config, size=GIB)
    pool = pool.draw(config, A, seed=1, phase=6)
    pool, _ = pool.add(config, D, "start", -1, GIB)
    pool, evicted = pool.add(config, D, "phase-06", 6, GIB)
    assert evicted == [(A, "phase-01")]
    assert Counter(pool.slots) == {"start": 2, "phase-03": 2, "phase-05": 4}


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(0, 99),
    st.sampled_from(["latest", "uniform", "pfsp", "mixture"]),
)
def test_a_saved_and_restored_pool_goes_on_as_the_unbroken_one(
    results: list[tuple[float, float]], opponents: int, phase: int, draw: str
) -> None:
    config = PoolConfig(draw=draw, opponents=opponents)
    pool = pool_of(*(f"phase-{i:02d}" for i in range(len(results))))
    pool = pool.add_results(A, {f"phase-{i:02d}": (min(r), max(r)) for i, r in enumerate(results)})
    pool = pool.draw(config, A, seed=3, phase=phase)
    restored = Pool.from_dict(json.loads(json.dumps(pool.to_dict())))
    assert restored == pool
    assert restored.draw(config, A, seed=3, phase=phase + 2) == pool.draw(config, A, seed=3, phase=phase + 2)
    assert len(pool.slots) == opponents
    assert set(pool.slots) <= set(names(pool))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"members": {}}, "pool.slots is missing"),
        ({"members": {}, "slots": ["x"]}, "pool.slots has 'x', which is no member"),
        ({"members": {"judge": []}, "slots": []}, "pool.members.judge is no role"),
        ({"members": {"attacker": [{"name": "x"}]}, "slots": []}, r"pool.members.attacker\[0\].phase is missing"),
        ({"members": {"attacker": [X | {"phase": -2}]}, "slots": []}, "phase=-2"),
        ({"members": {"attacker": [X | {"wins": -1.0}]}, "slots": []}, "wins=-1.0"),
    ],
)
def test_a_state_that_no_pool_has_is_refused(saved: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool.from_dict(saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draw": "best"}, "game.pool.draw='best' must be one of: latest, uniform, pfsp, mixture"),
        ({"opponents": 0}, "game.pool.opponents=0 must be at least 1"),
        ({"memory": 1.5}, "game.pool.memory=1.5 must be between 0 and 1"),
        ({"pfsp_power": -1.0}, "game.pool.pfsp_power=-1.0"),
        ({"max_disk_gib": 0.0}, "game.pool.max_disk_gib=0.0 must be greater than 0"),
        ({"max_host_gib": -1.0}, "game.pool.max_host_gib=-1.0 must be at least 0"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolConfig(**settings)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="game.pool.mixture is all 0"):
        MixtureConfig(0, 0, 0)
    with pytest.raises(ValueError, match="game.pool.mixture.pfsp=-1 must be"):
        MixtureConfig(1, 1, -1)
