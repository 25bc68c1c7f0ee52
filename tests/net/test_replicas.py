"""Whom to ask next, as a state machine: its invariants over any history."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nemo_magic.net.replicas import Replicas

COUNT = 3


class History(RuleBasedStateMachine):
    """Requests begin and end in any order, time goes on in between."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = Replicas(COUNT)
        self.now = 0.0
        self.open: list[tuple[int, float]] = []
        self.cooldown_until = [-math.inf] * COUNT

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def somebody_asks(self) -> None:
        chosen = self.replicas.pick(self.now)
        up = [i for i in range(COUNT) if self.replicas.is_up(i)]
        if chosen is None:
            assert all(self.now < self.cooldown_until[i] for i in up)
            return
        assert self.now >= self.cooldown_until[chosen]
        if up:
            up = [i for i in up if self.now >= self.cooldown_until[i]]
            assert chosen in up
            assert self.replicas.in_flight(chosen) == min(map(self.replicas.in_flight, up))
        else:
            assert self.replicas.in_flight(chosen) == 0
        self.replicas.acquire(chosen)
        self.open.append((chosen, self.now))

    @rule()
    def one_that_is_down_is_probed(self) -> None:
        lost = self.replicas.next_probe(self.now)
        if lost is not None:
            assert not self.replicas.is_up(lost)
            assert self.replicas.in_flight(lost) == 0
            assert self.now >= self.cooldown_until[lost]
            self.replicas.acquire(lost)
            self.open.append((lost, self.now))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0), end=st.sampled_from(["answered", "failed", "released"]), pause=st.floats(0, 10))
    def a_request_ends(self, which: int, end: str, pause: float) -> None:
        i, began = self.open.pop(which % len(self.open))
        if end == "answered":
            self.replicas.succeed(i)
            assert self.replicas.is_up(i)
        elif end == "released":
            self.replicas.release(i)
        else:
            self.replicas.fail(i, self.now, began)
            self.replicas.cooldown(i, self.now + pause)
            assert not self.replicas.is_up(i)
            self.cooldown_until[i] = max(self.cooldown_until[i], self.now + pause)

    @invariant()
    def what_is_in_flight_is_what_began_and_did_not_end(self) -> None:
        for i in range(COUNT):
            assert self.replicas.in_flight(i) == sum(1 for replica, _ in self.open if replica == i)

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        if self.replicas.pick(self.now) is None and not self.open:
            pause = self.replicas.next_change(self.now)
            assert pause < math.inf
            later = self.now + pause * (1 + 1e-9) + 1e-9
            assert self.replicas.pick(later) is not None or self.replicas.next_probe(later) is not None


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_burst_of_failures_is_one() -> None:
    replicas = Replicas(1)
    for _ in range(8):
        replicas.acquire(0)
    assert [replicas.fail(0, now=5.0, began=1.0) for _ in range(8)] == [1] * 8
    replicas.acquire(0)
    assert replicas.fail(0, now=9.0, began=6.0) == 2


def test_work_goes_to_the_least_busy_in_turn() -> None:
    replicas = Replicas(3, first=1)
    asked = []
    for _ in range(6):
        chosen = replicas.pick(0.0)
        assert chosen is not None
        replicas.acquire(chosen)
        asked.append(chosen)
    assert asked == [1, 2, 0, 1, 2, 0]
    replicas.succeed(2)
    assert replicas.pick(0.0) == 2
    assert replicas.pick(0.0, besides={2}) == 1


def test_one_that_is_down_gets_no_work_while_others_are_up() -> None:
    replicas = Replicas(2)
    replicas.acquire(0)
    replicas.fail(0, now=0.0, began=0.0)
    replicas.cooldown(0, 3.0)
    assert replicas.pick(10.0) == 1
    assert replicas.next_probe(1.0) is None
    assert replicas.next_probe(10.0) == 0
    replicas.acquire(0)
    assert replicas.next_probe(11.0) is None
    replicas.succeed(0)
    assert replicas.is_up(0)


def test_a_request_ends_once() -> None:
    replicas = Replicas(1)
    replicas.acquire(0)
    replicas.succeed(0)
    with pytest.raises(ValueError, match="replica 0 has no request in flight"):
        replicas.release(0)
