"""The client of judges: conversations in, futures of verdicts out, over outages and restarts of the judge.

It fails closed. A verdict is returned only if a judge gave it to exactly that conversation; an answer that breaks the
protocol ends, after its retries, as unknown fields with an error, and an outage ends as JudgeUnavailable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import httpx
from pydantic import ValidationError
from typing_extensions import Self

from nemo_magic.game.episode import Verdict
from nemo_magic.judge.config import JudgeClientConfig, JudgeConfig
from nemo_magic.judge.errors import JudgeRefused, JudgeUnavailable, ProtocolError, TooManyUnknown
from nemo_magic.judge.protocol import (
    GuardInfo,
    JudgeAnswer,
    JudgeBatch,
    JudgeItem,
    has_unknown,
    match_answers,
    unknown_verdict,
)
from nemo_magic.net.background_client import BackgroundClient
from nemo_magic.net.faults import BrokenReply, Unavailable, first_fault, one_line, unavailable_from
from nemo_magic.net.tasks import gather

_NO_SUCH_ROUTE = (404, 405, 501)


class _BatchRefused(Exception):
    """The judge refuses this batch."""


@dataclass
class _Counters:
    items: int = 0
    duplicates: int = 0
    unknown: int = 0


class JudgeClient:
    """Asks the judges at ``cfg.urls`` from a thread of its own; ``clock`` (seconds) measures outages.

    Raises ValueError if there are no urls, or if the token's environment variable is empty.
    """

    def __init__(self, cfg: JudgeClientConfig, clock: Callable[[], float] = time.monotonic) -> None:
        if not cfg.urls:
            or_launch = ", or start one with judge.launch=true" if isinstance(cfg, JudgeConfig) else ""
            raise ValueError(f"{cfg.KEY}.urls is empty: name a running judge{or_launch}")
        self._cfg = cfg
        self._batch_size = cfg.batch_size
        self._counters = _Counters()
        self._guard = cfg.expect
        self._introduced = set[str]()
        self._client = BackgroundClient(
            cfg, _noun(cfg), cfg.KEY, JudgeUnavailable, clock, probe="/readyz", hedge=cfg.hedge
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        """Verdicts in the order of ``items``, each answering the fields its item asked.

        Raises ValueError at once for two items of one id, RuntimeError once the client is closed. The future raises
        JudgeUnavailable after ``give_up_after`` seconds without an answer, JudgeRefused if the token is not accepted or
        another guard answers than did before.
        """
        if len({item.id for item in items}) != len(items):
            raise ValueError("two items have the same id")
        return self._client.submit(self._score(tuple(items)))

    def wait_ready(self, timeout_s: float) -> GuardInfo:
        """The guard that judges, once one is loaded and accepts this client's token.

        Raises JudgeUnavailable if none is within ``timeout_s`` seconds, JudgeRefused if the token is not accepted or it
        is not the guard ``judge.expect``.
        """
        return self._client.submit(self._client.until_ready("/v1/guard", self._read_info, timeout_s)).result()

    def is_away(self) -> bool:
        """Whether a request failed for want of an answer, and none was answered since."""
        return self._client.is_away()

    def stats(self) -> dict[str, float]:
        """Totals since the client began: counts of items and requests, latencies of answers, seconds of outage."""
        return self._client.stats() | asdict(self._counters)

    def close(self) -> None:
        """Cancel what is pending and end the thread. Futures still pending are cancelled."""
        self._client.close()

    async def _score(self, items: Sequence[JudgeItem]) -> list[Verdict]:
        contents = [item.content() for item in items]
        unique = dict(zip(contents, items, strict=True))
        distinct = list(unique.values())
        size = self._batch_size
        by_id = await self._judge_all(distinct[start : start + size] for start in range(0, len(distinct), size))
        verdicts = [
            replace(by_id[unique[content].id], id=item.id) for content, item in zip(contents, items, strict=True)
        ]
        self._counters.items += len(items)
        self._counters.duplicates += len(items) - len(distinct)
        self._counters.unknown += sum(has_unknown(verdict) for verdict in verdicts)
        return verdicts

    async def _judge_all(self, batches: Iterable[Sequence[JudgeItem]]) -> dict[str, Verdict]:
        answers = await gather(self._judge(batch) for batch in batches)
        return {id: verdict for answer in answers for id, verdict in answer.items()}

    async def _judge(self, items: Sequence[JudgeItem]) -> dict[str, Verdict]:
        """Verdicts of one batch by id, however many attempts that takes."""
        body = JudgeBatch(items=tuple(items)).to_json().encode()
        try:
            return await self._client.ask(lambda url: self._ask(url, items, body))
        except BrokenReply as fault:
            return _unknown(items, f"the answer breaks the protocol: {fault}")
        except _BatchRefused as refusal:
            if len(items) == 1:
                return _unknown(items, f"the judge does not take this item: {refusal}")
        # One item that the judge does not take must not cost the others their verdicts.
        half = len(items) // 2
        return await self._judge_all([items[:half], items[half:]])

    async def _ask(self, url: str, items: Sequence[JudgeItem], body: bytes) -> dict[str, Verdict]:
        """One request. Raises Unavailable, BrokenReply, _BatchRefused or JudgeRefused."""
        if url not in self._introduced:
            await self._introduce(url)
        response = await self._client.post(f"{url}/v1/judge", body)
        self._check_token(url, response)
        if response.status_code in (400, 413, 422):
            raise _BatchRefused(f"{url}: {response.status_code} {one_line(response.text)}")
        if response.status_code != 200:
            raise unavailable_from(url, response)
        try:
            answers = match_answers(items, JudgeAnswer.model_validate_json(response.content).verdicts)
        except ValidationError as error:
            raise BrokenReply(first_fault(error)) from error
        except ProtocolError as error:
            raise BrokenReply(str(error)) from error
        for answer in answers:
            self._check_guard(url, answer.guard)
        return {answer.id: answer.to_verdict() for answer in answers}

    async def _introduce(self, url: str) -> None:
        """Ask a judge who it is before its first verdict, which could name anyone.

        One that does not say has to be the guard that the others are, or the first to answer. Raises what ``_ask``
        raises.
        """
        response = await self._client.get(f"{url}/v1/guard")
        if response.is_success or response.status_code in _NO_SUCH_ROUTE:
            with suppress(ValidationError):
                self._accept(url, GuardInfo.model_validate_json(response.content))
            self._introduced.add(url)
        else:
            self._check_token(url, response)
            raise unavailable_from(url, response)

    def _accept(self, url: str, info: GuardInfo) -> None:
        self._check_guard(url, info.guard)
        self._batch_size = min(self._batch_size, info.max_items)

    def _read_info(self, url: str, response: httpx.Response) -> GuardInfo:
        self._check_token(url, response)
        if response.status_code != 200:
            raise unavailable_from(url, response)
        try:
            info = GuardInfo.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(f"{url}: {first_fault(error)}") from error
        self._accept(url, info)
        self._introduced.add(url)
        return info

    def _check_token(self, url: str, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise JudgeRefused(
                f"{url}: {response.status_code} {one_line(response.text)}; see {self._cfg.KEY}.token_env"
            )

    def _check_guard(self, url: str, guard: str) -> None:
        """All replicas have to be the guard that answered first, at its revision: rewards of two do not compare."""
        if self._guard is None:
            self._guard = guard
        if guard != self._guard:
            before = f"{self._cfg.KEY}.expect is" if self._cfg.expect else "the first to answer was"
            raise JudgeRefused(f"{url} is the guard {guard}; {before} {self._guard}")


def refuse_incapable(info: GuardInfo, fields: Iterable[str]) -> None:
    """Raise JudgeRefused if the guard can never tell one of ``fields``: every sample would be unknown."""
    if never := sorted(set(fields) - set(info.answers)):
        raise JudgeRefused(
            f"the guard {info.guard} never answers {', '.join(never)}, which the run asks for "
            f"(rewards, game.extra_verdict_fields); it answers {', '.join(info.answers)}. Name a judge in judge.urls "
            "that does, e.g. judge_ensemble"
        )


def refuse_unknown(cfg: JudgeConfig, unknown: int, total: int) -> None:
    """Raise TooManyUnknown if more than ``judge.max_unknown_share`` of ``total`` samples have no verdict."""
    if total and unknown / total > cfg.max_unknown_share:
        raise TooManyUnknown(
            f"the judge could not tell for {unknown} of {total} samples, "
            f"more than judge.max_unknown_share={cfg.max_unknown_share:g}"
        )


def _noun(cfg: JudgeClientConfig) -> str:
    """What logs call it: the judge whose verdicts become rewards, or the second one."""
    return "judge" if isinstance(cfg, JudgeConfig) else "auditing judge"


def _unknown(items: Sequence[JudgeItem], error: str) -> dict[str, Verdict]:
    return {item.id: replace(unknown_verdict(item, "none", error).to_verdict(), guard="") for item in items}
