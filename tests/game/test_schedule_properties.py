"""The alternation, for every configuration and every course of the metric."""

from __future__ import annotations

import json
import math
from itertools import groupby, pairwise
from statistics import mean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_magic.game.episode import Role
from nemo_magic.game.schedule import MetricSwitchConfig, Schedule, ScheduleConfig, learning_rounds

ASR = "train_rollouts/asr"
Rounds = list[dict[str, float]]

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def switches(draw: st.DrawFn) -> MetricSwitchConfig:
    low, high = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    longest = draw(st.integers(1, 12))
    return MetricSwitchConfig(
        low=low,
        high=high,
        window=draw(st.integers(1, longest)),
        min_steps=draw(st.integers(1, longest)),
        max_steps=longest,
    )


@st.composite
def configs(draw: st.DrawFn, by: str | None = None, both: bool = False) -> ScheduleConfig:
    ratios = st.integers(1, 4)
    roles = [["attacker", "defender"], ["defender", "attacker"]] + ([] if both else [["attacker"], ["defender"]])
    return ScheduleConfig(
        freq=draw(st.integers(1, 8)),
        ratio_defender=draw(ratios),
        ratio_attacker=draw(ratios),
        start=draw(st.sampled_from(["attacker", "defender"])),
        by=by or draw(st.sampled_from(["steps", "metric"])),
        train_roles=draw(st.sampled_from(roles)),
        metric=draw(switches()),
    )


SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0]))
ANYTHING = SHARES | st.floats()


def rounds(values: st.SearchStrategy[float] = ANYTHING) -> st.SearchStrategy[Rounds]:
    """What the rounds report, one after another: a value (a share, any float, infinite or nan), or nothing."""
    reported = values.map(lambda value: {ASR: value, "train_rollouts/useful": 0.5})
    return st.lists(st.one_of(reported, st.just({})), max_size=80)


def course(config: ScheduleConfig, played: Rounds) -> list[Schedule]:
    """The state before every round, and the one after the last."""
    states = [Schedule.begin(config)]
    for metrics in played:
        states.append(states[-1].advance(config, metrics))
    return states


def saved_and_restored(schedule: Schedule) -> Schedule:
    return Schedule.from_dict(json.loads(json.dumps(schedule.to_dict(), allow_nan=False)))


def phases(states: list[Schedule]) -> list[list[Schedule]]:
    """The rounds of every phase, by the state before each; the last phase may go on."""
    return [list(group) for _, group in groupby(states, key=lambda state: state.phase)]


@untimed
@given(configs(by="steps"), rounds())
def test_by_steps_every_phase_lasts_exactly_its_roles_steps(config: ScheduleConfig, played: Rounds) -> None:
    *whole, last = phases(course(config, played))
    for phase in whole:
        assert len(phase) == config.phase_steps(phase[0].learner)
    assert len(last) <= config.phase_steps(last[0].learner)


@untimed
@given(configs(by="steps"), st.integers(0, 80))
def test_by_steps_the_rounds_that_remain_are_known(config: ScheduleConfig, steps: int) -> None:
    for phase in phases(course(config, [{}] * steps)):
        whole = config.phase_steps(phase[0].learner)
        assert [state.steps_left(config) for state in phase] == [whole - done for done in range(len(phase))]


@untimed
@given(configs(), rounds())
def test_a_state_counts_its_rounds_and_its_phases(config: ScheduleConfig, played: Rounds) -> None:
    states = course(config, played)
    assert [state.step for state in states] == list(range(len(played) + 1))
    by_phase = phases(states)
    assert [phase[0].phase for phase in by_phase] == list(range(len(by_phase)))
    for phase in by_phase:
        assert [state.step_in_phase for state in phase] == list(range(len(phase)))
        assert len({state.learner for state in phase}) == 1


@untimed
@given(configs(both=True), rounds())
def test_two_learners_take_turns_and_start_learns_first(config: ScheduleConfig, played: Rounds) -> None:
    learners = [phase[0].learner for phase in phases(course(config, played))]
    assert learners[0] == config.start
    assert all(one is other.opponent for one, other in pairwise(learners))


@untimed
@given(configs(), rounds())
def test_who_is_not_trained_never_learns(config: ScheduleConfig, played: Rounds) -> None:
    assert {state.learner.value for state in course(config, played)} <= set(config.train_roles)


@untimed
@given(configs(), rounds(), st.data())
def test_a_resumed_run_goes_on_as_the_unbroken_one(config: ScheduleConfig, played: Rounds, data: st.DataObject) -> None:
    states = course(config, played)
    cut = data.draw(st.integers(0, len(played)))
    resumed = saved_and_restored(states[cut])
    for metrics, state in zip(played[cut:], states[cut + 1 :], strict=True):
        resumed = resumed.advance(config, metrics)
        assert resumed == state
        # What is planned ahead from a state is planned alike from the restored one.
        assert resumed.steps_left(config) == state.steps_left(config)


@untimed
@given(configs(), rounds())
def test_saving_and_restoring_changes_nothing(config: ScheduleConfig, played: Rounds) -> None:
    for state in course(config, played):
        restored = saved_and_restored(state)
        assert restored == state
        assert restored.to_dict() == state.to_dict()
        assert type(restored.learner) is Role
        assert type(restored.window) is tuple


@untimed
@given(configs(by="metric"), rounds())
def test_by_metric_no_phase_is_shorter_than_min_steps_or_longer_than_max_steps(
    config: ScheduleConfig, played: Rounds
) -> None:
    *whole, last = phases(course(config, played))
    for phase in whole:
        assert config.metric.min_steps <= len(phase) <= config.metric.max_steps
    assert len(last) <= config.metric.max_steps


@untimed
@given(configs(by="metric"), rounds())
def test_by_metric_the_window_holds_the_last_values_of_this_phase_and_no_other(
    config: ScheduleConfig, played: Rounds
) -> None:
    for phase in phases(course(config, played)):
        for state in phase:
            own = played[phase[0].step : state.step]
            values = [metrics[ASR] for metrics in own if math.isfinite(metrics.get(ASR, math.nan))]
            assert list(state.window) == values[-config.metric.window :]


@untimed
@given(configs(by="metric"), rounds())
def test_by_metric_a_phase_before_its_longest_ends_exactly_where_its_learner_has_won(
    config: ScheduleConfig, played: Rounds
) -> None:
    switch, states = config.metric, course(config, played)
    for state, after, metrics in zip(states, states[1:], played, strict=False):
        done = state.step_in_phase + 1
        if done == switch.max_steps:
            assert after.phase == state.phase + 1
            continue
        value = metrics.get(ASR, math.nan)
        values = [*state.window, value][-switch.window :]
        won = False
        if done >= switch.min_steps and math.isfinite(value) and len(values) == switch.window:
            won = mean(values) <= switch.low if state.learner is Role.DEFENDER else mean(values) >= switch.high
        assert (after.phase != state.phase) == won


@untimed
@given(configs(), rounds())
def test_a_phase_ends_where_ends_phase_says(config: ScheduleConfig, played: Rounds) -> None:
    states = course(config, played)
    for state, after, metrics in zip(states, states[1:], played, strict=False):
        assert state.ends_phase(config, metrics) == (after.phase != state.phase)


@pytest.mark.slow
@untimed
@given(configs(by="metric"), rounds(SHARES))
def test_by_metric_the_rounds_that_are_certain_to_remain_do_and_no_more_are(
    config: ScheduleConfig, played: Rounds
) -> None:
    for phase in phases(course(config, played))[:-1]:
        for number, state in enumerate(phase):
            assert state.steps_left(config) <= len(phase) - number
    # From any state, values that are all won end the phase after exactly that many rounds.
    state = course(config, played)[-1]
    won = {ASR: -1e9 if state.learner is Role.DEFENDER else 1e9}
    later = state
    for _ in range(state.steps_left(config)):
        assert later.phase == state.phase
        later = later.advance(config, won)
    assert later.phase == state.phase + 1


@untimed
@given(configs(), rounds())
def test_no_course_of_the_metric_lets_a_role_learn_more_often_than_was_counted(
    config: ScheduleConfig, played: Rounds
) -> None:
    learners = [state.learner for state in course(config, played)][:-1]
    for role in Role:
        most = learning_rounds(config, role, len(played))
        learned = learners.count(role)
        assert learned == most if config.by == "steps" else learned <= most
