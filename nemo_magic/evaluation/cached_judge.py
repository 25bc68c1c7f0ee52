"""The judge of an evaluation, asked nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace

from pydantic import TypeAdapter

from nemo_magic.actors.rank_group import RankGroup, run_on_sources
from nemo_magic.evaluation.errors import EvaluationError
from nemo_magic.game.episode import Verdict
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import JudgeItem
from nemo_magic.rollout.response_cache import ResponseCache, cache_key
from nemo_magic.runtime.preemption import Preemption

_VERDICT = TypeAdapter(Verdict)


class CachedJudge:
    """The judge, asked nothing twice. A verdict with an error is not kept: it is asked for again next time.

    ``client`` and ``cache`` are None on ranks that are no sources. ``preemption``: whose signals end the wait for
    verdicts; None: a signal ends the process.
    """

    def __init__(
        self,
        ranks: RankGroup,
        client: JudgeClient | None,
        cache: ResponseCache | None,
        guard: str,
        preemption: Preemption | None = None,
    ) -> None:
        self._preemption = preemption or Preemption(ranks, None)
        self._ranks, self._client, self._cache, self._guard = ranks, client, cache, guard
        self.judged = 0
        """Conversations that were newly judged on this rank, where it is a source."""

    def judge(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        """Verdicts in order; empty on ranks that are no sources.

        Raises:
            EvaluationError: on every rank, where the judge of any could not be had.
            Preempted: as ``Preemption.wait``.
        """
        keys = [cache_key(self._guard, item.content()) for item in items]
        by_key = dict(zip(keys, items, strict=True))
        missing = self._cache.missing(keys) if self._cache is not None else []

        def ask() -> Future[list[Verdict]]:
            assert self._client is not None
            return self._client.score([by_key[key] for key in missing])

        def is_away() -> bool:
            return self._client is not None and self._client.is_away()

        answers = self._preemption.wait(ask, is_away, EvaluationError) or []
        return run_on_sources(self._ranks, lambda: self._keep(items, keys, missing, answers), EvaluationError) or []

    def _keep(
        self, items: Sequence[JudgeItem], keys: Sequence[str], missing: Sequence[str], answers: Sequence[Verdict]
    ) -> list[Verdict]:
        """The verdicts on ``items``, of which those on ``missing`` are new."""
        assert self._cache is not None
        failed: dict[str, Verdict] = {}
        if missing:
            verdicts = dict(zip(missing, answers, strict=True))
            failed = {key: verdict for key, verdict in verdicts.items() if verdict.error is not None}
            self._cache.add({key: asdict(verdict) for key, verdict in verdicts.items() if key not in failed})
            self.judged += len(missing)
        # The same conversation may have been another item's.
        verdicts = {key: failed[key] if key in failed else _VERDICT.validate_python(self._cache[key]) for key in keys}
        return [replace(verdicts[key], id=item.id) for key, item in zip(keys, items, strict=True)]
