"""What a response costs that comes near its length limit, or is cut there."""

from __future__ import annotations

import pytest

from nemo_magic.game.episode import Completion, Episode, Label, Role, Seed, Turn
from nemo_magic.game.metrics import Scored
from nemo_magic.game.overlong import overlong_penalty, with_overlong
from nemo_magic.game.rewards import RewardConfig, unfinished_rewards


def said(length: int, finished: bool = True) -> Completion:
    return Completion((1,), tuple(range(length)), (), "x", finished)


def episode(*lengths: tuple[int, int], finished: tuple[bool, bool] = (True, True)) -> Episode:
    turns = tuple(Turn("x", True, said(a, finished[0]), said(d, finished[1])) for a, d in lengths)
    return Episode(Seed("s", "x", Label.HARMFUL), 0, 0, turns)


@pytest.mark.parametrize("length", range(1, 101))
def test_the_soft_penalty_is_the_published_one(length: int) -> None:
    # DAPO's equation 13 with L_max = 100 and L_cache = 20, times a size.
    expected = 0.0 if length <= 80 else (80 - length) / 20 if length <= 100 else -1.0
    assert -overlong_penalty(length, 100, 20, 0.5) == pytest.approx(0.5 * expected)
    assert overlong_penalty(150, 100, 20, 0.5) == 0.5


def test_a_role_pays_for_its_longest_message_and_only_where_it_has_a_limit() -> None:
    one = Scored(episode((50, 95), (90, 10)), None, {Role.ATTACKER: {"harm": 1.0}, Role.DEFENDER: {"harm": -1.0}})
    config = RewardConfig(overlong_buffer=20, overlong_penalty=1.0)
    [paid] = with_overlong([one], config, dict.fromkeys(Role, 100))
    assert paid.rewards == {
        Role.ATTACKER: {"harm": 1.0, "overlong": -0.5},
        Role.DEFENDER: {"harm": -1.0, "overlong": -0.75},
    }
    assert with_overlong([one], config, {}) == [one]
    assert with_overlong([one._replace(rewards=None)], config, {Role.ATTACKER: 100})[0].rewards is None


def test_an_unfinished_response_is_worth_nothing_to_its_role_where_that_is_asked_for() -> None:
    cut = episode((5, 5), finished=(False, True))
    assert unfinished_rewards(RewardConfig(), cut) == {}
    [(role, reward)] = unfinished_rewards(RewardConfig(unfinished="zero"), cut).items()
    assert (role, reward.total, reward.parts) == (Role.ATTACKER, 0, {})
    assert unfinished_rewards(RewardConfig(unfinished="zero"), episode((5, 5))) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unfinished": "no"}, "rewards.unfinished='no' must be one of: judged, zero"),
        ({"overlong_penalty": 0.5}, "give both, or neither"),
        ({"overlong_buffer": 10}, "give both, or neither"),
        ({"overlong_penalty": -1.0}, "rewards.overlong_penalty=-1.0 must be ≥ 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**options)  # type: ignore[arg-type]
