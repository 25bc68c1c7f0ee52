"""A long run in bounded memory, and why its phases ended."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from nemo_magic.report.records import StepRecord
from nemo_magic.report.series import Buckets, Phases


def rows(count: int) -> Iterator[StepRecord]:
    for step in range(count):
        yield StepRecord(
            step, "defender", 0, "defender", {"x": float(step), "odd": float(step) if step % 2 else math.nan}
        )


def test_a_short_run_is_shown_row_by_row() -> None:
    buckets = Buckets(limit=10)
    for row in rows(10):
        buckets.add(row)
    assert buckets.width == 1
    assert buckets.of("x").steps == list(range(10))
    assert buckets.of("odd").means == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert buckets.of("never").steps == []


@pytest.mark.parametrize("count", [11, 64, 1000, 4097])
def test_a_long_run_is_averaged_over_equally_many_rows_and_nothing_is_lost(count: int) -> None:
    buckets = Buckets(limit=10)
    for row in rows(count):
        buckets.add(row)
    points = buckets.of("x")
    assert len(points.steps) <= 10
    assert points.steps[-1] == count - 1
    width = buckets.width
    for number, (mean, low, high) in enumerate(zip(points.means, points.lows, points.highs, strict=True)):
        first, last = number * width, min((number + 1) * width, count) - 1
        assert (low, mean, high) == (first, (first + last) / 2, last)


SCHEDULE = {"by": "steps", "freq": 3}
BY_METRIC = {"by": "metric", "metric": {"name": "asr", "low": 0.1, "window": 2, "min_steps": 2, "max_steps": 4}}


def phases(schedule: dict[str, object] | None, asr: float) -> Phases:
    found = Phases(schedule)
    for step in range(1, 6):
        index = 0 if step < 5 else 1
        found.add(StepRecord(step, "x", index, "attacker" if index else "defender", {"asr": asr}))
    return found


@pytest.mark.parametrize(
    ("schedule", "asr", "why"),
    [
        (SCHEDULE, 0.5, "4 rounds were played (game.schedule.freq × ratio)"),
        (BY_METRIC, 0.5, "4 rounds without success (game.schedule.metric.max_steps)"),
        (BY_METRIC, 0.05, "mean of the last 2 asr was 0.05, ≤ 0.1"),
        (None, 0.5, None),
        ({"by": "the moon"}, 0.5, None),
    ],
)
def test_why_a_phase_ended(schedule: dict[str, object] | None, asr: float, why: str | None) -> None:
    first, last = phases(schedule, asr).all
    assert (first.learner, first.first, first.last, first.ended) == ("defender", 1, 4, why)
    assert (last.learner, last.first, last.last, last.ended) == ("attacker", 5, 5, None)
