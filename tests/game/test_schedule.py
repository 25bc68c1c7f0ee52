"""The alternation, by example: what a person should know about it."""

from __future__ import annotations

import math

import pytest

from nemo_magic.config import MagicConfig, compose, describe, optimizer_steps, role_model
from nemo_magic.config.errors import ConfigError
from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import MetricSwitchConfig, Schedule, ScheduleConfig

ASR = "train_rollouts/asr"


def by_metric(**options: object) -> ScheduleConfig:
    """Phases of 2 to 6 rounds, by the mean of two values."""
    switch = {"low": 0.2, "high": 0.6, "window": 2, "min_steps": 2, "max_steps": 6} | options
    return ScheduleConfig(by="metric", metric=MetricSwitchConfig(**switch))  # type: ignore[arg-type]


def learners(config: ScheduleConfig, values: list[float | None]) -> str:
    """Who learned in each round with these attack success rates: ``d`` or ``a``."""
    schedule, who = Schedule.begin(config), ""
    for value in values:
        who += schedule.learner[0]
        schedule = schedule.advance(config, {} if value is None else {ASR: value})
    return who


def test_the_first_phase_is_as_long_as_every_other() -> None:
    assert learners(ScheduleConfig(), [None] * 50) == "d" * 15 + "a" * 15 + "d" * 15 + "a" * 5


def test_ratios_stretch_a_roles_phases() -> None:
    config = ScheduleConfig(freq=2, ratio_attacker=2, start="attacker")
    assert learners(config, [None] * 14) == "aaaaddaaaaddaa"


def test_metrics_say_nothing_where_phases_go_by_steps() -> None:
    assert learners(ScheduleConfig(freq=2), [0.0, 1.0, math.nan, 0.0, None]) == "ddaad"
    assert Schedule.begin(ScheduleConfig()).advance(ScheduleConfig(), {ASR: 0.1}).window == ()


def test_a_defender_phase_ends_at_low_and_an_attacker_phase_at_high() -> None:
    # means of two: .35, .2 | .5, .65 | .45, .15
    assert learners(by_metric(), [0.4, 0.3, 0.1, 0.3, 0.7, 0.6, 0.7, 0.2, 0.1, 0.5]) == "dddaaaddda"


def test_a_bound_that_is_just_met_ends_the_phase() -> None:
    assert learners(by_metric(), [0.2, 0.2, 0.6, 0.6, 1.0]) == "ddaad"


def test_a_switch_starts_an_empty_window() -> None:
    config = by_metric()
    schedule = Schedule.begin(config).advance(config, {ASR: 0.9})
    assert schedule.window == (0.9,)
    assert schedule.advance(config, {ASR: -0.9}) == Schedule(Role.ATTACKER, step=2, phase=1)


def test_a_window_longer_than_the_shortest_phase_delays_the_switch() -> None:
    assert learners(by_metric(window=4, min_steps=1), [0.0] * 5) == "dddda"


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_round_without_a_value_neither_fills_the_window_nor_ends_the_phase(missing: float | None) -> None:
    assert learners(by_metric(), [missing] * 7) == "dddddda"
    assert learners(by_metric(), [0.1, missing, missing, 0.1, 0.5]) == "dddda"
    # Enough won by the third round, which may not end the phase yet; the fourth and fifth say nothing.
    assert learners(by_metric(min_steps=4), [0.1, 0.1, 0.1, missing, missing, 0.1, 0.5]) == "dddddda"


@pytest.mark.parametrize("role", list(Role))
def test_a_role_that_trains_alone_learns_in_phases_that_follow_one_another(role: Role) -> None:
    config = ScheduleConfig(freq=2, train_roles=[role.value], start=role.opponent.value)
    schedule, phases = Schedule.begin(config), []
    for _ in range(5):
        assert schedule.learner is role
        phases.append(schedule.phase)
        schedule = schedule.advance(config)
    assert phases == [0, 0, 1, 1, 2]


def test_the_rounds_that_remain_are_counted_with_the_one_to_be_played() -> None:
    config = ScheduleConfig(freq=3)
    schedule, left = Schedule.begin(config), []
    for _ in range(7):
        left.append(schedule.steps_left(config))
        schedule = schedule.advance(config)
    assert left == [3, 2, 1, 3, 2, 1, 3]
    # By metric: until min_steps, then one at a time.
    config = by_metric(min_steps=3)
    schedule, left = Schedule.begin(config), []
    for _ in range(7):
        left.append(schedule.steps_left(config))
        schedule = schedule.advance(config, {ASR: 0.5})
    assert left == [3, 2, 1, 1, 1, 1, 3]


def test_a_run_resumed_with_a_smaller_freq_ends_its_phase_at_once() -> None:
    schedule, smaller = Schedule(Role.DEFENDER, step=10, step_in_phase=10), ScheduleConfig(freq=5)
    assert schedule.steps_left(smaller) == 1
    assert schedule.advance(smaller) == Schedule(Role.ATTACKER, step=11, phase=1)


def test_a_saved_schedule_reads_as_json() -> None:
    schedule = Schedule(Role.ATTACKER, step=20, phase=1, step_in_phase=5, window=(0.25, 0.5))
    assert schedule.to_dict() == {
        "learner": "attacker",
        "step": 20,
        "phase": 1,
        "step_in_phase": 5,
        "window": [0.25, 0.5],
    }
    assert type(schedule.to_dict()["learner"]) is str


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": "judge"}, "schedule.learner='judge' must be one of: attacker, defender"),
        ({"learner": None}, "schedule.learner=None must be one of"),
        ({"step": -1}, "schedule.step=-1 must be a whole number, at least 0"),
        ({"step": 20.0}, "schedule.step=20.0 must be a whole number"),
        ({"phase": True}, "schedule.phase=True must be a whole number"),
        ({"step_in_phase": "5"}, "schedule.step_in_phase='5' must be a whole number"),
        ({"step_in_phase": 21}, "schedule.step_in_phase=21 must be at most schedule.step=20"),
        ({"phase": 16}, "schedule.phase=16 must be at most 15"),
        ({"window": None}, "schedule.window=None must be a list of finite floats"),
        ({"window": [0.5, math.nan]}, "schedule.window=.* must be a list of finite floats"),
        ({"window": [True]}, "schedule.window=.* must be a list of finite floats"),
        ({"window": [0.5] * 6}, "schedule.window has 6 values of 5 rounds"),
        ({"windwo": []}, "schedule.windwo is unknown"),
    ],
)
def test_a_saved_schedule_that_is_none_is_refused_by_key(changes: dict[str, object], message: str) -> None:
    saved = {"learner": "attacker", "step": 20, "phase": 1, "step_in_phase": 5, "window": [0.5]}
    Schedule.from_dict(saved)
    with pytest.raises(ValueError, match=message):
        Schedule.from_dict(saved | changes)


@pytest.mark.parametrize("key", ["learner", "step", "phase", "step_in_phase", "window"])
def test_a_saved_schedule_without_one_of_its_keys_is_refused(key: str) -> None:
    saved = Schedule(Role.DEFENDER).to_dict()
    del saved[key]
    with pytest.raises(ValueError, match=f"schedule.{key} is missing"):
        Schedule.from_dict(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "asr"}, r"game.schedule.by='asr' must be one of: steps, metric"),
        ({"train_roles": []}, r"game.schedule.train_roles is empty"),
        ({"train_roles": ["judge"]}, r"game.schedule.train_roles='judge' must be one of"),
        ({"train_roles": ["attacker"] * 2}, r"game.schedule.train_roles=.* names a role twice"),
    ],
)
def test_impossible_alternations_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name is empty"),
        ({"low": math.nan}, "low=nan must be a finite number"),
        ({"low": 0.5, "high": 0.4}, "low=0.5 must be at most game.schedule.metric.high=0.4"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"min_steps": 0}, "min_steps=0 must be at least 1"),
        ({"min_steps": 9, "max_steps": 8}, "min_steps=9 must be at most game.schedule.metric.max_steps=8"),
        ({"window": 9, "max_steps": 8}, "window=9 must be at most game.schedule.metric.max_steps=8"),
    ],
)
def test_impossible_switches_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"game.schedule.metric.{message}"):
        MetricSwitchConfig(**options)  # type: ignore[arg-type]


def configured(*overrides: str) -> MagicConfig:
    return compose("magic_sandbox", ["game.max_steps=25", *overrides])


def test_optimizer_steps_are_those_of_the_rounds_that_a_role_learns_in() -> None:
    cfg = configured("game.schedule.freq=5", "game.schedule.start=attacker", "grpo.minibatches=2")
    assert (optimizer_steps(cfg, "attacker"), optimizer_steps(cfg, "defender")) == (30, 20)
    assert optimizer_steps(cfg, "attacker", rounds=12) == 14
    cfg = configured("game.schedule.train_roles=[attacker]")
    assert (optimizer_steps(cfg, "attacker"), optimizer_steps(cfg, "defender")) == (25, 0)


def test_by_metric_optimizer_steps_are_the_most_there_can_be() -> None:
    switch = "game.schedule.metric={window:2,min_steps:3,max_steps:6}"
    cfg = configured("game.schedule.by=metric", switch)
    # own phases of 6, the opponent's of 3: dddddd aaa dddddd aaa dddddd a; ddd aaaaaa ddd aaaaaa ddd aaaa
    assert (optimizer_steps(cfg, "defender"), optimizer_steps(cfg, "attacker")) == (18, 16)


def test_an_early_stop_leaves_the_learning_rate_schedule_as_long_as_it_was() -> None:
    cfg = configured("game.early_stop.at_step=5")
    assert role_model(cfg, "defender").optim.sched.max_steps == 15
    assert "attacker  3 layers × 96" in describe(cfg)
    assert "; 0 updates" in describe(cfg)
    assert "; 5 updates" in describe(cfg)


@pytest.mark.slow
def test_the_plan_says_how_phases_and_the_run_end() -> None:
    plan = describe(
        configured("game.early_stop.at_step=5", "game.schedule.train_roles=[defender]", "game.max_epochs=2")
    )
    assert "25 steps, at most 2 × the training seeds, early stop at step 5" in plan
    assert "phases of steps: defender 15, and again; only the defender learns" in plan
    stop = "game.early_stop={metric:val_rollouts/asr,below:0.02,patience:2}"
    plan = describe(configured("game.schedule.by=metric", stop))
    assert "25 steps, early stop when val_rollouts/asr is below 0.02 2 times" in plan
    assert "phases of 5 to 30 steps by the mean of the last 5 train_rollouts/asr: defender until ≤ 0.1, " in plan
    assert "; at most 25 updates" in plan


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["game.max_epochs=0"], "game.max_epochs=0 must be at least 1, or null"),
        (
            ["game.schedule.by=metric", "game.schedule.metric.name=val_rollouts/asr"],
            "measured every game.val_check_interval=15 rounds, at most 2 times in a phase",
        ),
        (
            ["game=paper", "game.extra_verdict_fields=[]", "game.early_stop={metric:val_rollouts/useful,above:0.9}"],
            "game.early_stop.metric=val_rollouts/useful needs the verdict's field helpful, which nothing asks for",
        ),
    ],
)
def test_what_is_waited_for_has_to_be_measured(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(*overrides)
