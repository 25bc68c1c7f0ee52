"""The ranks that work together, as the rest of the code sees them. Imports neither torch nor Megatron.

``nemo_magic.actors.distributed.World`` is the one over torch.distributed; ``SingleProcess`` has no peers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class RankGroup(Protocol):
    """One rank's position among those that run together, and what they can tell each other."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""

    @property
    def dp_rank(self) -> int:
        """Number of this rank's model-parallel group: which share of the data is its own."""

    @property
    def dp_size(self) -> int:
        """Data-parallel size: how many shares there are."""

    @property
    def is_source(self) -> bool:
        """Whether this is the one rank of its model-parallel group that talks to servers and files."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""

    def broadcast_model_parallel(self, value: T) -> T:
        """The source rank's ``value``, on every rank of its model-parallel group."""

    def gather_data_parallel(self, value: T) -> list[T]:
        """Every data-parallel rank's ``value``, in rank order, on all of them."""

    def all_gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on all of them."""


@dataclass(frozen=True)
class SingleProcess:
    """The rank group of a process without peers."""

    rank: int = 0
    dp_rank: int = 0
    dp_size: int = 1
    is_source: bool = True
    is_main: bool = True

    def broadcast_model_parallel(self, value: T) -> T:
        """``value`` itself."""
        return value

    def gather_data_parallel(self, value: T) -> list[T]:
        """``value`` alone."""
        return [value]

    def all_gather(self, value: T) -> list[T]:
        """``value`` alone."""
        return [value]


def run_on_sources(ranks: RankGroup, work: Callable[[], T], error: Callable[[str], Exception]) -> T | None:
    """``run_on_all`` of ``work`` on the source ranks only; None on the others."""
    return run_on_all(ranks, lambda: work() if ranks.is_source else None, error)


def run_on_all(
    ranks: RankGroup,
    work: Callable[[], T],
    error: Callable[[str], Exception],
    catch: type[Exception] = Exception,
) -> T:
    """Do ``work`` on every rank; where it fails on one, raise on all.

    A rank that raised alone would leave its peers waiting in their next collective.

    Args:
        ranks: those who work; all of them have to call.
        error: makes the exception from the first failed rank's message.
        catch: what counts as a failure; other exceptions pass.

    Raises:
        Exception: what ``error`` makes, on every rank.
    """
    message, cause = None, None
    try:
        result = work()
    except catch as caught:
        message, cause = f"{type(caught).__name__}: {caught}", caught
    failures = [text for text in ranks.all_gather(message) if text]
    if failures:
        raise error(failures[0]) from cause
    return result
