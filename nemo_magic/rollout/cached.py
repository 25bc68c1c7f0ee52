"""A policy that generates nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nemo_magic.actors.rank_group import RankGroup
from nemo_magic.game.episode import Completion, NoAnswer
from nemo_magic.game.prompts import Chat
from nemo_magic.rollout.policy import Policy
from nemo_magic.rollout.response_cache import ResponseCache, cache_key


class CachedPolicy:
    """A policy whose completions are read back where the same was asked before. They come without ids and
    log-probabilities. What got no answer is asked again next time.

    Args:
        cache: None on ranks that are no sources.
        identity: what completions at temperature 0 depend on beside the chat, as JSON.
        sampling: what sampled completions depend on too, as JSON.
    """

    def __init__(
        self, ranks: RankGroup, policy: Policy, cache: ResponseCache | None, identity: Any, sampling: Any = None
    ) -> None:
        self._ranks, self._policy, self._cache = ranks, policy, cache
        self._identity, self._sampling = identity, sampling
        self.generated = 0
        """Completions that were newly generated, not read back."""

    @property
    def neutralised(self) -> int:
        """As ``Policy.neutralised``."""
        return self._policy.neutralised

    def generate(
        self, chats: Sequence[Chat], seeds: Sequence[int] | None = None, greedy: bool = True
    ) -> list[Completion | NoAnswer | None]:
        """As ``Policy.generate``; all ranks take part. ``seeds`` are needed, and count, where ``greedy`` is false."""
        texts = [[[m.role, m.content] for m in chat] for chat in chats]
        if greedy or seeds is None:
            keys = [cache_key(self._identity, text) for text in texts]
            seeds = [int(key[:16], 16) for key in keys]
        else:
            sampled = {"identity": self._identity, "sampling": self._sampling}
            keys = [cache_key(sampled, text, seed) for text, seed in zip(texts, seeds, strict=True)]
        missing = self._ranks.broadcast_model_parallel(self._cache.missing(keys) if self._cache is not None else [])
        unanswered = dict[str, NoAnswer]()
        # Elsewhere something may be missing, and what ranks do together they do equally often.
        if any(self._ranks.all_gather(bool(missing))):
            asks = dict(zip(keys, zip(chats, seeds, strict=True), strict=True))
            completions = self._policy.generate(
                [asks[key][0] for key in missing], [asks[key][1] for key in missing], greedy
            )
            by_key = dict(zip(missing, completions, strict=True))
            unanswered = {key: one for key, one in by_key.items() if isinstance(one, NoAnswer)}
            if self._cache is not None:
                self._cache.add(
                    {
                        key: None if one is None else [one.text, one.finished]
                        for key, one in by_key.items()
                        if not isinstance(one, NoAnswer)
                    }
                )
            self.generated += len(missing) - len(unanswered)
        values = None if self._cache is None else [unanswered[k] if k in unanswered else self._cache[k] for k in keys]
        return [
            value if value is None or isinstance(value, NoAnswer) else Completion((), (), (), value[0], value[1])
            for value in self._ranks.broadcast_model_parallel(values) or []
        ]

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """As ``Policy.truncate_to_context``; the same on every rank of a group."""
        return self._policy.truncate_to_context(text, chat_of)
