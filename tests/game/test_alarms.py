"""The alarms: which of them sound, when they are over, and that a resumed run has the alarms of the unbroken one."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_magic.game.alarms import AlarmEvent, Alarms, AlarmsConfig, JudgeUnknown, NoLiveRows, OverRefusal

STEPS, PHASE = 120, 15
Figures = dict[str, float]


def learner(step: int) -> str:
    return ("defender", "attacker")[(step - 1) // PHASE % 2]


def a_healthy_game(seed: int) -> Iterator[Figures]:
    """ASR falls and returns in attacker phases; the rest moves as sampled figures do."""
    noise = random.Random(seed)

    def share(mean: float, spread: float = 0.04) -> float:
        return min(1.0, max(0.0, noise.gauss(mean, spread)))

    for step in range(1, STEPS + 1):
        attacks = learner(step) == "attacker"
        gain = 0.03 * ((step - 1) % PHASE)
        yield {
            "train_rollouts/asr": share(0.1 + gain if attacks else 0.5 - gain),
            "train_rollouts/useful": share(0.93),
            "train_rollouts/intent_preserved": share(0.85 if attacks else 0.89),
            "train_rollouts/over_refusal": share(0.04, 0.03),
            "train_rollouts/unknown_share": share(0.005, 0.01),
            "train_optim/entropy": noise.gauss(0.6 - 0.3 * step / STEPS if attacks else 0.2, 0.03),
            "train_optim/neg_logprob_minus_entropy": noise.gauss(0.0, 0.05),
            "train_optim/mismatch": 1.01 + abs(noise.gauss(0, 0.01)),
        } | ({"train_rollouts/attack_distance": share(0.6)} if attacks else {})


def planted(change: Callable[[float, Figures], Figures]) -> Iterator[Figures]:
    """A healthy game of which ``change`` makes something else, the later (0..1) the more."""
    for step, figures in enumerate(a_healthy_game(0), start=1):
        yield figures | change(step / STEPS, figures)


def events_of(games: Iterator[Figures], config: AlarmsConfig | None = None) -> list[AlarmEvent]:
    alarms, events = Alarms(), []
    for step, figures in enumerate(games, start=1):
        alarms, new, _ = alarms.after(config or AlarmsConfig(), step, learner(step), figures)
        events += new
    return events


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_game_is_silent(seed: int) -> None:
    assert events_of(a_healthy_game(seed)) == []


RECORDED: Mapping[str, Mapping[str, list[float | None]]] = json.loads(
    (Path(__file__).parent / "recorded_games.json").read_text("utf-8")
)
"""The metrics of ``make train``'s game, and the same game with the published reward
(``game=paper game.group_size=8 game.max_steps=75 game.num_val_samples=64``); the seed is in the name."""


def as_recorded(name: str) -> Iterator[Figures]:
    recorded = RECORDED[name]
    for at in range(len(recorded["train_rollouts/asr"])):
        yield {metric: value for metric, values in recorded.items() if (value := values[at]) is not None}


DIPPED = "robust-3"
"""The attacker found rewrites under which benign seeds were refused (useful 1.00 to 0.48 in ten steps' mean), and the
defender learned better in its next phase."""


@pytest.mark.parametrize("name", [name for name in RECORDED if name.startswith("robust") and name != DIPPED])
def test_the_sandbox_game_as_it_was_played_is_silent(name: str) -> None:
    useful = [figures["train_rollouts/useful"] for figures in as_recorded(name)]
    assert min(sum(useful[at : at + 10]) / 10 for at in range(len(useful) - 9)) > 0.75, "it was not healthy"
    assert events_of(as_recorded(name)) == []


def test_a_game_that_loses_its_usefulness_and_recovers_raises_alarms_and_clears_them() -> None:
    events = [(event.alarm, event.raised) for event in events_of(as_recorded(DIPPED))]
    assert events == [("useful_down", True), ("over_refusal", True), ("over_refusal", False), ("useful_down", False)]


@pytest.mark.parametrize("name", [name for name in RECORDED if name.startswith("paper")])
def test_the_collapse_under_the_published_reward_raises_alarms_while_it_happens(name: str) -> None:
    events = events_of(as_recorded(name))
    assert {event.alarm for event in events} == {"useful_down", "intent_drift", "over_refusal"}
    assert all(event.raised and event.step < 50 for event in events)


PLANTED: Mapping[str, Callable[[float, Figures], Figures]] = {
    "useful_down": lambda late, f: {"train_rollouts/useful": 0.93 - 0.9 * late, "train_rollouts/asr": 0.5 - 0.5 * late},
    "intent_drift": lambda late, f: {"train_rollouts/intent_preserved": 0.9 - 0.8 * late},
    "attacker_collapse": lambda late, f: {"train_optim/entropy": f["train_optim/entropy"] * (1 - late) ** 3},
    "over_refusal": lambda late, f: {"train_rollouts/over_refusal": 0.02 + 0.6 * late},
    "judge_unknown": lambda late, f: {"train_rollouts/unknown_share": 0.2 * late},
    "mismatch": lambda late, f: {"train_optim/mismatch": 1 + 0.4 * late},
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_fault_raises_its_own_alarm_and_no_other(name: str) -> None:
    events = events_of(planted(PLANTED[name]))
    assert {event.alarm for event in events if event.raised} == {name}
    assert all(event.cause and event.remedy and event.figures for event in events)


def test_attacks_that_all_become_the_same_raise_an_alarm_even_where_no_entropy_is_reported() -> None:
    def same(late: float, figures: Figures) -> Figures:
        distance = {"train_rollouts/attack_distance": 0.6 * (1 - late) ** 3}
        return {"train_optim/entropy": math.nan} | (distance if "train_rollouts/attack_distance" in figures else {})

    assert {e.alarm for e in events_of(planted(same))} == {"attacker_collapse"}


def test_samples_from_something_else_than_the_policy_raise_an_alarm() -> None:
    stale = planted(lambda late, f: {"train_optim/neg_logprob_minus_entropy": late, "train_optim/mismatch": math.nan})
    assert {e.alarm for e in events_of(stale)} == {"mismatch"}


def test_the_defenders_entropy_is_not_the_attackers() -> None:
    def sure(late: float, figures: Figures) -> Figures:
        # The attacker's steps are those that report how far its attacks are from each other.
        return {} if "train_rollouts/attack_distance" in figures else {"train_optim/entropy": 0.0}

    assert events_of(planted(sure)) == []


def test_figures_of_a_handful_of_rows_say_nothing_about_the_policy() -> None:
    def won(rows: float) -> Callable[[float, Figures], Figures]:
        unlikely = {"train_optim/neg_logprob_minus_entropy": 0.9, "train_optim/live_rows": rows}
        return lambda late, f: unlikely if late > 0.5 else {}

    assert events_of(planted(won(31))) == []
    assert {e.alarm for e in events_of(planted(won(32)))} == {"mismatch"}


def test_useful_answers_that_fall_while_attacks_succeed_are_no_collapse_into_refusal() -> None:
    lost = planted(lambda late, f: {"train_rollouts/useful": 0.93 - 0.9 * late, "train_rollouts/asr": 0.5 + 0.4 * late})
    assert events_of(lost) == []


def one_figure(values: list[float]) -> Iterator[Figures]:
    return ({"train_rollouts/over_refusal": value} for value in values)


def test_an_alarm_is_raised_once_and_cleared_once() -> None:
    config = AlarmsConfig(over_refusal=OverRefusal(window=2, rise=0.2))
    values = [0.0, 0.0, 0.3, 0.3, 0.19, 0.21, 0.3, 0.0, 0.0]
    events = events_of(one_figure(values), config)
    assert [(event.step, event.raised) for event in events] == [(4, True), (9, False)]
    assert str(events[0]).startswith(
        "ALARM over_refusal after step 4: train_rollouts/over_refusal 0.3 (has been 0 to 0.3)"
    )
    assert "over after step 9" in str(events[1])


@pytest.mark.parametrize(
    ("phases", "window", "raised"),
    [
        ([64, 0, 64, 0], 1, [2, 4]),
        ([64, 0, 0, 8], 1, [2]),
        ([0], 1, [1]),
        ([64, 0, 64, 0, 0], 2, [5]),
        ([0.5, 1.5, 2], 1, [1]),
        ([3, 8, 16], 1, []),
    ],
)
def test_a_whole_phase_without_a_live_group_is_an_alarm(phases: list[float], window: int, raised: list[int]) -> None:
    config, alarms, rang = AlarmsConfig(no_live_rows=NoLiveRows(window=window)), Alarms(), []
    for phase, rows in enumerate(phases, start=1):
        for step in range(PHASE - 1):  # a step without a live group says nothing yet
            alarms, events, ratios = alarms.after(config, step, "defender", {"train_optim/live_rows": 0.0})
            assert (events, ratios) == ([], {})
        known = {"train_optim/live_rows": rows, "train_optim/phase_live_rows": rows}
        alarms, events, ratios = alarms.after(config, PHASE, "defender", known)
        alarms = Alarms.from_dict(json.loads(json.dumps(alarms.to_dict())))
        assert not ratios
        rang += [phase for event in events if event.raised]
        assert all(f"{rows:g} responses trained" in str(event) for event in events if window == 1)
    assert rang == raised


def test_an_alarm_that_is_off_is_never_raised() -> None:
    config = AlarmsConfig(over_refusal=OverRefusal(action="off", window=2))
    assert events_of(one_figure([0.0] * 5 + [1.0] * 5), config) == []


def test_a_run_that_an_alarm_stopped_is_stopped_again_until_the_action_is_warn() -> None:
    config = AlarmsConfig(over_refusal=OverRefusal(action="stop", window=1))
    alarms = Alarms()
    assert alarms.stop_reason(config) is None
    for step, figures in enumerate(one_figure([0.0, 0.9]), start=1):
        alarms, _, ratios = alarms.after(config, step, "defender", figures)
    assert ratios["alarms/over_refusal"] == pytest.approx(4.5)
    again = Alarms.from_dict(json.loads(json.dumps(alarms.to_dict())))
    reason = again.stop_reason(config)
    assert reason is not None
    assert "alarms.over_refusal.action=stop" in reason
    assert "alarms.over_refusal.action=warn" in reason
    assert again.stop_reason(replace(config, over_refusal=OverRefusal(action="warn", window=1))) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, STEPS - 1), st.sampled_from(sorted(PLANTED)))
def test_a_state_that_is_saved_and_restored_anywhere_continues_as_the_unbroken_one(at: int, name: str) -> None:
    unbroken, resumed = Alarms(), Alarms()
    for step, figures in enumerate(planted(PLANTED[name]), start=1):
        unbroken, events, ratios = unbroken.after(AlarmsConfig(), step, learner(step), figures)
        if step == at:
            resumed = Alarms.from_dict(json.loads(json.dumps(resumed.to_dict(), allow_nan=False)))
        resumed, same_events, same_ratios = resumed.after(AlarmsConfig(), step, learner(step), figures)
        assert (events, ratios, unbroken) == (same_events, same_ratios, resumed)


def test_a_figure_that_is_not_finite_or_not_reported_counts_as_nothing() -> None:
    quiet = one_figure([0.0, math.nan, 0.0, math.inf])
    assert events_of(quiet, AlarmsConfig(over_refusal=OverRefusal(window=2))) == []
    assert Alarms().after(AlarmsConfig(), 1, "defender", {})[2] == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JudgeUnknown(action="ring"), "alarms.judge_unknown.action='ring' must be one of: off, warn, stop"),
        (lambda: JudgeUnknown(window=0), "alarms.judge_unknown.window=0 must be at least 1"),
        (lambda: OverRefusal(rise=0.0), "alarms.over_refusal.rise=0.0 must be a finite number greater than 0"),
    ],
)
def test_what_cannot_be_set_is_refused_by_its_key(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_saved_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="the saved state has count"):
        Alarms.from_dict({"count": 1})


def test_every_alarm_and_what_it_compares_with_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")
    for alarm in AlarmsConfig().enabled():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{alarm.name}` |")]
        own = {one.name for one in fields(alarm)} - {"action", "window", "min_rows"}
        assert own
        assert {name for name in own if f"`{name}`" in row} == own
