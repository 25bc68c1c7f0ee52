"""When a run ends before its last step: by rounds, by epochs, by a metric."""

from __future__ import annotations

import json
import math
from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_magic.game.stopping import EarlyStop, EarlyStopConfig, total_steps

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

VALUES = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf]))


def metrics(value: float | None) -> dict[str, float]:
    return {"train_rollouts/asr": 0.0} | ({} if value is None else {"val_rollouts/asr": value})


def ends(config: EarlyStopConfig, values: list[float | None]) -> list[int]:
    """The steps at which a run with these values of the metric, step by step from 1, would end."""
    state, found = EarlyStop(), []
    for step, value in enumerate(values, start=1):
        state = state.after(config, step, metrics(value))
        if state.stop_reason(config, step):
            found.append(step)
    return found


def test_without_a_rule_nothing_ends_a_run() -> None:
    assert ends(EarlyStopConfig(), [0.0] * 50) == []


def test_a_run_of_three_hundred_steps_ends_early_at_two_hundred() -> None:
    config = EarlyStopConfig(at_step=200)
    assert ends(config, [None] * 300)[0] == 200
    assert EarlyStop().stop_reason(config, 199) is None
    assert EarlyStop().stop_reason(config, 200) == "game.early_stop.at_step=200 is reached"


def test_patience_counts_validations_and_not_steps() -> None:
    config = EarlyStopConfig(metric="val_rollouts/asr", below=0.1, patience=2)
    assert ends(config, [0.05, None, None, 0.3, None, 0.05, None, 0.01]) == [8]
    reason = EarlyStop(2).stop_reason(config, 8)
    assert reason == "val_rollouts/asr was below 0.1 2 times in a row (game.early_stop.patience=2)"


def test_a_bound_is_passed_and_not_met() -> None:
    assert ends(EarlyStopConfig(metric="val_rollouts/asr", below=0.1), [0.1, 0.05]) == [2]
    assert ends(EarlyStopConfig(metric="val_rollouts/asr", above=0.1), [0.05, 0.1, 0.2]) == [3]


def test_what_was_measured_before_the_first_step_ends_nothing() -> None:
    config = EarlyStopConfig(metric="val_rollouts/asr", below=0.1)
    assert EarlyStop().after(config, 0, metrics(0.0)) == EarlyStop()


@untimed
@given(values=st.lists(VALUES, max_size=60), patience=st.integers(1, 4), bound=st.floats(0, 1), below=st.booleans())
def test_a_run_ends_where_the_last_patience_values_are_past_the_bound(
    values: list[float | None], patience: int, bound: float, below: bool
) -> None:
    config = EarlyStopConfig(
        metric="val_rollouts/asr", below=bound if below else None, above=None if below else bound, patience=patience
    )
    expected, seen = [], []
    for step, value in enumerate(values, start=1):
        if value is not None and math.isfinite(value):
            seen.append(value < bound if below else value > bound)
        runs = [(past, len(list(run))) for past, run in groupby(seen)]
        if runs and runs[-1][0] and runs[-1][1] >= patience:
            expected.append(step)
    assert ends(config, values) == expected


@untimed
@given(values=st.lists(VALUES, max_size=30), cut=st.integers(0, 30))
def test_a_resumed_count_goes_on_as_the_unbroken_one(values: list[float | None], cut: int) -> None:
    config = EarlyStopConfig(metric="val_rollouts/asr", above=0.5, patience=3)
    unbroken = resumed = EarlyStop()
    for step, value in enumerate(values, start=1):
        if step == cut:
            resumed = EarlyStop.from_dict(json.loads(json.dumps(resumed.to_dict())))
        unbroken = unbroken.after(config, step, metrics(value))
        resumed = resumed.after(config, step, metrics(value))
        assert resumed == unbroken


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "early_stop.count is missing"),
        ({"count": 1, "cuont": 1}, "early_stop.cuont is unknown"),
        ({"count": -1}, "early_stop.count=-1 must be a whole number, at least 0"),
        ({"count": True}, "early_stop.count=True must be a whole number"),
        ({"count": 1.0}, "early_stop.count=1.0 must be a whole number"),
    ],
)
def test_a_saved_count_that_is_none_is_refused_by_key(saved: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStop.from_dict(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_step": 0}, "game.early_stop.at_step=0 must be at least 1, or null"),
        ({"patience": 0}, "game.early_stop.patience=0 must be at least 1"),
        ({"below": 0.1}, "game.early_stop.below=0.1 needs game.early_stop.metric, which is null"),
        ({"metric": ""}, "game.early_stop.metric is empty"),
        ({"metric": "x"}, "game.early_stop.metric='x' needs exactly one of below and above"),
        ({"metric": "x", "below": 0.1, "above": 0.2}, "needs exactly one of below and above, has below=0.1 and above"),
        ({"metric": "x", "above": math.nan}, "game.early_stop.above=nan must be a finite number"),
    ],
)
def test_impossible_early_stops_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("max_epochs", "num_seeds", "steps"), [(None, 10, 300), (1, 640, 10), (1, 641, 11), (2, 650, 21), (9, 30_000, 300)]
)
def test_epochs_shorten_a_run_and_never_lengthen_it(max_epochs: int | None, num_seeds: int, steps: int) -> None:
    assert total_steps(300, max_epochs, batch_size=64, num_seeds=num_seeds) == steps


@untimed
@given(st.integers(1, 10_000), st.integers(1, 20), st.integers(1, 300), st.integers(1, 40_000))
def test_the_rounds_of_some_epochs_show_every_seed_that_often_and_not_one_round_more(
    max_steps: int, max_epochs: int, batch_size: int, num_seeds: int
) -> None:
    steps = total_steps(max_steps, max_epochs, batch_size, num_seeds)
    assert 1 <= steps <= max_steps
    assert steps == max_steps or steps * batch_size >= max_epochs * num_seeds
    assert (steps - 1) * batch_size < max_epochs * num_seeds
