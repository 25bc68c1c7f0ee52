"""A role's words, generated once and then read back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from nemo_magic.game.episode import Completion
from nemo_magic.game.prompts import Chat
from nemo_magic.rollout.policy import Policy
from nemo_magic.rollout.rank_group import RankGroup, run_on_all
from nemo_magic.rollout.response_cache import ResponseCache, cache_key

CachedMessage = tuple[str, bool] | None
"""A message and whether it was finished; None where the chat is longer than the model can read."""


class CachedPolicy:
    """A role that says nothing twice. ``identity``: what its words at temperature 0 depend on beside the chat;
    ``sampling``: what they depend on too where they are sampled.

    Ranks of a model-parallel group ask the same chats and learn the same words. Where a server plays the role
    (``remote``), ``policy`` is None on ranks that do not speak to the outside; ``cache`` is so in any case.
    """

    def __init__(
        self,
        world: RankGroup,
        policy: Policy | None,
        cache: ResponseCache | None,
        identity: Any,
        remote: bool,
        sampling: Any = None,
    ) -> None:
        self._world, self._policy, self._cache, self._identity = world, policy, cache, identity
        self._remote, self._sampling = remote, sampling
        self.asked = 0
        """Messages that were newly generated, not read back."""

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int] | None = None) -> list[CachedMessage]:
        """The next message of each chat: at temperature 0, or sampled with the 64-bit ``seeds``, one a chat."""
        texts = [[[m.role, m.content] for m in chat] for chat in chats]
        if seeds is None:
            keys = [cache_key(self._identity, text) for text in texts]
            wanted_seeds = [int(key[:16], 16) for key in keys]
        else:
            sampled = {"identity": self._identity, "sampling": self._sampling}
            keys = [cache_key(sampled, text, seed) for text, seed in zip(texts, seeds, strict=True)]
            wanted_seeds = list(seeds)
        wanted = self._world.broadcast_model_parallel(self._cache.missing(keys) if self._cache is not None else [])
        # Elsewhere something may be missing, and what ranks do together they do equally often.
        if any(self._world.all_gather(bool(wanted))):
            by_key = dict(zip(keys, zip(chats, wanted_seeds, strict=True), strict=True))
            found = [by_key[key] for key in wanted]
            said = self._ask([chat for chat, _ in found], [seed for _, seed in found], greedy=seeds is None)
            if self._cache is not None:
                new = {
                    key: None if c is None else [c.text, c.finished] for key, c in zip(wanted, said or [], strict=True)
                }
                self._cache.add(new)
            self.asked += len(wanted)
        values = None if self._cache is None else [self._cache[key] for key in keys]
        return [
            None if value is None else (value[0], value[1])
            for value in self._world.broadcast_model_parallel(values) or []
        ]

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As much of ``text`` as the model can read; the same on every rank of a group."""
        fitted = None if self._policy is None else self._policy.truncate_to_context(text, chat_of)
        return text if fitted is None else fitted

    def _ask(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | None] | None:
        policy = self._policy
        if not self._remote:
            assert policy is not None
            return policy.generate(chats, seeds, greedy)
        return run_on_all(self._world, lambda: policy.generate(chats, seeds, greedy) if policy is not None else [])


def seed_of(*parts: object) -> int:
    """A 64-bit seed that names one draw, the same on every rank, machine and Python."""
    return int.from_bytes(hashlib.blake2b(repr(tuple(map(str, parts))).encode(), digest_size=8).digest(), "big")
