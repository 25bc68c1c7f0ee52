"""Waiting for a server while the run is asked to end: ranks in threads, a clock that is set by hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from nemo_magic.runtime import preemption
from nemo_magic.runtime.errors import Preempted
from nemo_magic.runtime.preemption import PATIENCE, Preemption


class Ranks:
    """Threads that gather as ranks do."""

    def __init__(self, count: int) -> None:
        self.values: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=20)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


@dataclass
class Rank:
    ranks: Ranks
    rank: int
    is_source: bool = True

    def all_gather(self, value: Any) -> list[Any]:
        return self.ranks.gather(self.rank, value)


class Failed(Exception):
    pass


class Scene:
    """Two sources and a rank that is none. ``received``: the signal of a rank, ``away``: what its client knows."""

    def __init__(self, received: dict[int, signal.Signals], away: bool = False) -> None:
        self.futures: list[Future[str]] = [Future(), Future()]
        self.away, self.now = away, 0.0
        self.looks = 0
        ranks = Ranks(3)
        self.preemptions = [Preemption(Rank(ranks, n, n < 2), None, self.clock) for n in range(3)]  # type: ignore[arg-type]
        for rank, number in received.items():
            self.preemptions[rank]._note(number, None)

    def clock(self) -> float:
        """A look takes a second."""
        self.looks += 1
        self.now += 1.0
        return self.now

    def wait(self, submit: Callable[[int], Future[str]] | None = None) -> list[Any]:
        """What each rank gets, or what it raises."""

        def work(rank: int) -> Any:
            begin = submit or self.futures.__getitem__
            try:
                return self.preemptions[rank].wait(lambda: begin(rank), lambda: self.away, Failed)
            except Exception as error:
                return error

        with ThreadPoolExecutor(3) as threads:
            return list(threads.map(work, range(3)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_POLL", 0.001)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("answered", [[], [0], [1]])
@pytest.mark.parametrize(("number", "away"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGUSR1, True)])
def test_a_signal_to_any_rank_ends_the_wait_of_all(
    rank: int, answered: list[int], number: signal.Signals, away: bool
) -> None:
    scene = Scene({rank: number}, away)
    for one in answered:
        scene.futures[one].set_result("answer")
    results = scene.wait()
    assert [type(result) for result in results] == [Preempted] * 3
    assert {str(result) for result in results} == {f"{number.name} received while a server did not answer"}
    assert [future.cancelled() for future in scene.futures] == [one not in answered for one in range(2)]
    assert scene.now >= PATIENCE


def test_a_server_that_answers_slowly_is_waited_for_after_a_signal_in_good_time() -> None:
    scene = Scene({0: signal.SIGUSR1})
    scene.futures[0].set_result("one")

    def answer_late() -> None:
        while scene.looks < 50:  # far beyond its patience
            threading.Event().wait(0.001)
        scene.futures[1].set_result("two")

    late = threading.Thread(target=answer_late)
    late.start()
    assert scene.wait() == ["one", "two", None]
    late.join()


@pytest.mark.parametrize("received", [{}, {0: signal.SIGTERM}])
def test_an_answer_that_is_there_is_taken_whatever_was_received(received: dict[int, signal.Signals]) -> None:
    scene = Scene(received)
    for future, text in zip(scene.futures, ("one", "two"), strict=True):
        future.set_result(text)
    assert scene.wait() == ["one", "two", None]


@pytest.mark.parametrize("where", ["asking", "answering"])
def test_a_rank_that_fails_ends_the_wait_of_all_by_name(where: str) -> None:
    scene = Scene({})

    def submit(rank: int) -> Future[str]:
        if rank == 1 and where == "asking":
            raise ConnectionError("gone")
        return scene.futures[rank]

    if where == "answering":
        scene.futures[1].set_exception(ConnectionError("gone"))
    results = scene.wait(submit)
    assert [(type(result), str(result)) for result in results] == [(Failed, "ConnectionError: gone")] * 3
    assert scene.futures[0].cancelled()
