"""How far an evaluation is: bars on a terminal, plain lines elsewhere, and an estimate that goes by the last chunks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nemo_magic.evaluation.progress import EvaluationProgress
from nemo_magic.formatting import duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_where_nobody_watches_a_plain_line_comes_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with EvaluationProgress({"a": 1000, "b": 1000}, Console(file=io.StringIO()), clock) as progress:
        progress.begin("a")
        for done in (250, 500, 750, 1000):
            clock.now += 10
            progress.advance(done)
        progress.begin("b")
        clock.now += 10
        progress.advance(250)
    assert capsys.readouterr().out.splitlines() == [
        "a: 500 of 1,000 cases; 500 of 2,000 in all, about 60 s left",
        "a: 1,000 of 1,000 cases; 1,000 of 2,000 in all, about 40 s left",
    ]


def test_cases_that_were_read_back_at_once_do_not_make_the_others_quick(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with EvaluationProgress({"a": 4000}, Console(file=io.StringIO()), clock) as progress:
        progress.begin("a")
        for done in range(100, 2100, 100):
            progress.advance(done)
        for done in range(2100, 4100, 100):
            clock.now += 60
            progress.advance(done)
    # 19 chunks remembered before the 20th: a minute for a hundred.
    assert "a: 3,900 of 4,000 cases; 3,900 of 4,000 in all, about 60 s left" in capsys.readouterr().out


def test_on_a_terminal_there_is_a_bar_of_the_task_and_one_of_all() -> None:
    clock, console = Clock(), terminal()
    with EvaluationProgress({"norp": 40, "fleb": 40}, console, clock) as progress:
        progress.begin("norp")
        clock.now = 30
        progress.advance(40)
        progress.begin("fleb")
        clock.now = 60
        progress.advance(20)
    text = text_of(console)
    assert "all tasks" in text
    assert "fleb" in text
    assert "60/80" in text
    assert "20/40" in text
    assert "about 20 s left" in text


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with EvaluationProgress({"a": 10}, None, clock) as progress:
        progress.begin("a")
        clock.now = 100
        progress.advance(5)
    assert capsys.readouterr().out == ""


def test_durations_are_told_as_people_tell_them() -> None:
    assert [duration(seconds) for seconds in (0, 42, 600, 7500)] == ["0 s", "42 s", "10 min", "2 h 05 min"]
