from __future__ import annotations

import pytest

from nemo_magic.game.diversity import attack_distance, with_diversity
from nemo_magic.game.episode import Completion, Episode, Label, Role, Seed, Turn
from nemo_magic.game.metrics import Scored


def game(group: int, sample: int, rewrite: str, paid: bool = True, model: bool = True) -> Scored:
    said = Completion((1,), (2,), (0.0,), rewrite, True)
    turn = Turn(rewrite, True, said if model else None, said)
    rewards = {Role.ATTACKER: {"harm": 1.0}, Role.DEFENDER: {"harm": -1.0}} if paid else None
    return Scored(Episode(Seed("x", "ask", Label.HARMFUL), group, sample, (turn,)), None, rewards)


def bonus(one: Scored) -> float | None:
    return None if one.rewards is None else one.rewards[Role.ATTACKER].get("diversity")


def test_a_rewrite_is_paid_for_its_distance_to_the_others_of_its_group() -> None:
    same, alike, other = with_diversity([game(0, 0, "a b"), game(0, 1, "a b"), game(0, 2, "c d")], 0.6)
    assert bonus(same) == bonus(alike) == pytest.approx(0.3)  # distances 0 and 1
    assert bonus(other) == pytest.approx(0.6)


def test_partly_alike_counts_partly() -> None:
    # word pairs: (·,a)(a,b)(b,·) and (·,a)(a,c)(c,·): one of five in common
    first, _ = with_diversity([game(0, 0, "a b"), game(0, 1, "a c")], 1.0)
    assert bonus(first) == pytest.approx(0.8)


def test_groups_do_not_see_each_other() -> None:
    assert [bonus(g) for g in with_diversity([game(0, 0, "a"), game(1, 0, "b")], 1.0)] == [0.0, 0.0]


def test_what_was_not_paid_or_not_written_by_a_model_is_left_as_it_is() -> None:
    games = [game(0, 0, "a"), game(0, 1, "b", paid=False), game(0, 2, "c", model=False)]
    first, unpaid, bare = with_diversity(games, 1.0)
    assert bonus(first) == 0.0
    assert unpaid.rewards is None
    assert bonus(bare) is None


def test_the_defenders_reward_is_not_touched() -> None:
    assert all(
        g.rewards[Role.DEFENDER] == {"harm": -1.0}
        for g in with_diversity([game(0, 0, "a"), game(0, 1, "b")], 1.0)
        if g.rewards
    )


def test_the_distance_of_attacks_is_over_all_pairs_of_a_group() -> None:
    games = [game(0, 0, "a b"), game(0, 1, "a b"), game(0, 2, "c d"), game(1, 0, "e")]
    assert attack_distance(games).means() == {"attack_distance": pytest.approx(2 / 3)}


def test_a_group_that_shares_one_attack_says_nothing_about_how_attacks_differ() -> None:
    one = game(0, 0, "a b")
    bare = [game(1, 0, "c", model=False), game(1, 1, "d", model=False)]
    assert attack_distance([one, one._replace(rewards=None), *bare]).means() == {}
