"""A policy that one rank of each model-parallel group has, for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from nemo_magic.actors.rank_group import RankGroup, run_on_sources
from nemo_magic.game.episode import Completion, NoAnswer
from nemo_magic.game.prompts import Chat
from nemo_magic.rollout.policy import Policy
from nemo_magic.runtime.preemption import Preemption

if TYPE_CHECKING:
    from nemo_magic.rollout.remote import RemotePolicy


class SharedPolicy:
    """Source ranks generate, with transformers say, and their model-parallel peers receive the same.

    Args:
        policy: None on ranks that are no sources, unless it can truncate there.
        error: makes the exception that every rank raises where a source rank fails.
    """

    def __init__(self, ranks: RankGroup, policy: Policy | None, error: Callable[[str], Exception]) -> None:
        self._ranks = ranks
        self._policy = policy
        self._error = error

    @property
    def neutralised(self) -> int:
        """As ``Policy.neutralised``; 0 where there is no policy."""
        return 0 if self._policy is None else self._policy.neutralised

    def generate(
        self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool
    ) -> Sequence[Completion | NoAnswer | None]:
        """As ``Policy.generate``; all ranks take part."""

        def work() -> Sequence[Completion | NoAnswer | None]:
            assert self._policy is not None
            return self._policy.generate(chats, seeds, greedy)

        completions = run_on_sources(self._ranks, work, self._error)
        return self._ranks.broadcast_model_parallel(completions) or []

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As ``Policy.truncate_to_context``; the whole text where there is no policy to tell what it can read."""
        return text if self._policy is None else self._policy.truncate_to_context(text, chat_of)


class SharedRemotePolicy(SharedPolicy):
    """The same of a role that a server plays: a signal ends the wait for it.

    Args:
        policy: None on ranks that are no sources.
        error: makes the exception that every rank raises where a source rank fails.
    """

    def __init__(
        self,
        ranks: RankGroup,
        policy: RemotePolicy | None,
        error: Callable[[str], Exception],
        preemption: Preemption,
    ) -> None:
        super().__init__(ranks, policy, error)
        self._remote, self._preemption = policy, preemption

    def generate(
        self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool
    ) -> Sequence[Completion | NoAnswer | None]:
        """As ``Policy.generate``; all ranks take part. Raises Preempted as ``Preemption.wait`` does."""

        def submit() -> Future[list[Completion | NoAnswer | None]]:
            assert self._remote is not None
            return self._remote.submit(chats, seeds, greedy)

        def is_away() -> bool:
            return self._remote is not None and self._remote.is_away()

        completions = self._preemption.wait(submit, is_away, self._error)
        return self._ranks.broadcast_model_parallel(completions) or []
