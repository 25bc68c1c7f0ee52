"""Where this process stands among those that evaluate together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class EvaluationError(Exception):
    """The evaluation cannot go on; what was answered and judged so far is written down."""


class RankGroup(Protocol):
    """One rank's place, as ``nemo_magic.actors.distributed.World`` has it."""

    @property
    def rank(self) -> int: ...
    @property
    def dp_rank(self) -> int: ...
    @property
    def dp_size(self) -> int: ...
    @property
    def is_source(self) -> bool: ...
    @property
    def is_main(self) -> bool: ...
    def broadcast_model_parallel(self, value: T) -> T: ...
    def gather_data_parallel(self, value: T) -> list[T]: ...
    def all_gather(self, value: T) -> list[T]: ...


@dataclass(frozen=True)
class SingleProcess:
    """The place of a process that has no peers: nothing is computed here, so it needs no world."""

    rank: int = 0
    dp_rank: int = 0
    dp_size: int = 1
    is_source: bool = True
    is_main: bool = True

    def broadcast_model_parallel(self, value: T) -> T:
        return value

    def gather_data_parallel(self, value: T) -> list[T]:
        return [value]

    def all_gather(self, value: T) -> list[T]:
        return [value]


def run_on_all(world: RankGroup, work: Callable[[], T]) -> T | None:
    """Do ``work`` on the ranks that speak to the outside; None elsewhere.

    Raises:
        EvaluationError: on every rank, where it failed on any; one that raised alone would leave its peers waiting.
    """
    done, error = None, None
    if world.is_source:
        try:
            done = work()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
    if failed := [text for text in world.all_gather(error) if text]:
        raise EvaluationError(failed[0])
    return done
