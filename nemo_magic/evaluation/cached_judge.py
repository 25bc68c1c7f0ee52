"""The judge of an evaluation, asked nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from pydantic import TypeAdapter

from nemo_magic.game.episode import Verdict
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import JudgeItem
from nemo_magic.rollout.rank_group import RankGroup, run_on_all
from nemo_magic.rollout.response_cache import ResponseCache, cache_key

_VERDICT = TypeAdapter(Verdict)


class CachedJudge:
    """The judge, asked nothing twice. A verdict with an error is no verdict to keep: it is asked for again next time.

    ``client`` and ``cache`` are None on ranks that do not speak to the outside.
    """

    def __init__(self, world: RankGroup, client: JudgeClient | None, cache: ResponseCache | None, guard: str) -> None:
        self._world, self._client, self._cache, self._guard = world, client, cache, guard
        self.asked = 0
        """Conversations that were newly judged on this rank, where it speaks."""

    def judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """Verdicts in order; empty on ranks that do not speak."""
        return run_on_all(self._world, lambda: self._judge(items)) or []

    def _judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        assert self._client is not None
        assert self._cache is not None
        keys = [cache_key(self._guard, item.content()) for item in items]
        by_key = dict(zip(keys, items, strict=True))
        wanted = self._cache.missing(keys)
        lost: dict[str, Verdict] = {}
        if wanted:
            items_wanted = [by_key[key] for key in wanted]
            verdicts = dict(zip(wanted, self._client.score(items_wanted).result(), strict=True))
            lost = {key: verdict for key, verdict in verdicts.items() if verdict.error is not None}
            self._cache.add({key: asdict(verdict) for key, verdict in verdicts.items() if key not in lost})
            self.asked += len(wanted)
        # The same conversation may have been another item's.
        found = (lost[key] if key in lost else _VERDICT.validate_python(self._cache[key]) for key in keys)
        return [replace(verdict, id=item.id) for verdict, item in zip(found, items, strict=True)]
