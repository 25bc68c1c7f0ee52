"""The client: conversations in, futures of verdicts out, whatever happens to the judge meanwhile.

It fails closed. A verdict is returned only if a judge gave it to exactly that conversation; an answer that breaks the
protocol, however often, ends as unknown fields with an error, and silence ends as JudgeUnavailable.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import httpx
from pydantic import ValidationError

from nemo_magic.game.episode import Verdict
from nemo_magic.judge.config import JudgeConfig
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

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection to open: an address that is gone must not cost a whole request timeout."""


class _Outage(Exception):
    """The judge did not answer now and may later."""


class _NotTaken(Exception):
    """The judge answers that it does not take this batch."""


@dataclass
class _Counters:
    requests: int = 0
    items: int = 0
    duplicates: int = 0
    unknown: int = 0
    retries: int = 0
    protocol_errors: int = 0
    answers: int = 0
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0
    outage_s: float = 0.0


class JudgeClient:
    """Asks the judges at ``cfg.urls`` from a thread of its own; ``clock`` (seconds) is what patience is counted by.

    Raises ValueError if there are no urls, or if the token's environment variable is empty.
    """

    def __init__(self, cfg: JudgeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        if not cfg.urls:
            raise ValueError("judge.urls is empty: name a running judge, or start one with judge.launch=true")
        self._cfg = cfg
        self._clock = clock
        self._urls = [url.rstrip("/") for url in cfg.urls]
        token = cfg.token()
        self._counters = _Counters()
        self._batch_size = cfg.batch_size
        # Its own: the process-wide generator belongs to the game, which has to be reproducible.
        self._random = random.Random()
        self._next_url = self._random.randrange(len(self._urls))
        self._last_success = float("-inf")
        self._down_since: float | None = None
        self._slots = asyncio.Semaphore(cfg.max_concurrency)
        self._http = httpx.AsyncClient(
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(None, connect=min(CONNECT_TIMEOUT, cfg.request_timeout)),
            limits=httpx.Limits(max_connections=cfg.max_concurrency),
            # A proxy or .netrc from the environment must see neither the conversations nor the token.
            trust_env=False,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        """Verdicts in the order of ``items``, each answering the fields its item asked.

        Raises ValueError at once for two items of one id. The future raises JudgeUnavailable after ``give_up_after``
        seconds without an answer, JudgeRefused if the token is not accepted.
        """
        if len({item.id for item in items}) != len(items):
            raise ValueError("two items have the same id")
        return self._submit(self._score(tuple(items)))

    def wait_ready(self, timeout_s: float) -> GuardInfo:
        """Who judges, once a judge is loaded and accepts this client's token.

        Raises JudgeUnavailable if none is within ``timeout_s`` seconds, JudgeRefused if the token is not accepted.
        """
        return self._submit(self._wait_ready(timeout_s)).result()

    def stats(self) -> dict[str, float]:
        """Totals since the client began: counts of items and requests, latencies of answers, seconds of outage."""
        counters = self._counters
        down = self._down_since
        return {
            "requests": counters.requests,
            "items": counters.items,
            "duplicates": counters.duplicates,
            "unknown": counters.unknown,
            "retries": counters.retries,
            "protocol_errors": counters.protocol_errors,
            "latency_mean_s": counters.latency_sum_s / max(counters.answers, 1),
            "latency_max_s": counters.latency_max_s,
            "outage_s": counters.outage_s + (0.0 if down is None else self._clock() - down),
        }

    def close(self) -> None:
        """Cancel what is pending and end the thread. Futures still pending are cancelled."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the judge client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _shutdown(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._http.aclose()

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
        tasks = [asyncio.create_task(self._judge(batch)) for batch in batches]
        try:
            return {id: verdict for answer in await asyncio.gather(*tasks) for id, verdict in answer.items()}
        finally:
            for task in tasks:
                task.cancel()

    async def _judge(self, items: Sequence[JudgeItem]) -> dict[str, Verdict]:
        """Verdicts of one batch by id, however many attempts that takes."""
        body = JudgeBatch(items=tuple(items)).to_json()
        self._next_url += 1
        first_url = self._next_url
        began: float | None = None
        broken = attempt = 0
        while True:
            async with self._slots:
                began = self._clock() if began is None else began
                try:
                    return await self._ask(self._urls[(first_url + attempt) % len(self._urls)], items, body)
                except _Outage as outage:
                    self._note_outage(outage)
                    waited = self._clock() - max(began, self._last_success)
                    if waited >= self._cfg.give_up_after:
                        raise JudgeUnavailable(
                            f"no answer from {', '.join(self._urls)} for {waited:.0f} s "
                            f"(judge.give_up_after={self._cfg.give_up_after:g}); last: {outage}"
                        ) from outage
                except ProtocolError as error:
                    self._counters.protocol_errors += 1
                    broken += 1
                    logger.warning("the judge's answer to %d items breaks the protocol: %s", len(items), error)
                    if broken > self._cfg.protocol_retries:
                        return _unknown(items, f"the answer breaks the protocol: {error}")
                except _NotTaken as refusal:
                    if len(items) == 1:
                        return _unknown(items, f"the judge does not take this item: {refusal}")
                    break
            attempt += 1
            self._counters.retries += 1
            await asyncio.sleep(self._backoff(attempt))
        # One item that the judge does not take must not cost the others their verdicts.
        half = len(items) // 2
        return await self._judge_all([items[:half], items[half:]])

    async def _ask(self, url: str, items: Sequence[JudgeItem], body: str) -> dict[str, Verdict]:
        """One request. Raises _Outage, _NotTaken, ProtocolError or JudgeRefused."""
        self._counters.requests += 1
        sent = self._clock()
        try:
            async with asyncio.timeout(self._cfg.request_timeout):
                response = await self._http.post(
                    f"{url}/v1/judge", content=body.encode(), headers={"Content-Type": "application/json"}
                )
        except TimeoutError as error:
            raise _Outage(f"{url}: no answer within judge.request_timeout={self._cfg.request_timeout:g} s") from error
        except httpx.HTTPError as error:
            raise _Outage(f"{url}: {type(error).__name__}: {error}") from error
        _accepted(url, response)
        if response.status_code in (400, 413, 422):
            raise _NotTaken(f"{url}: {response.status_code} {response.text[:300]}")
        if response.status_code != 200:
            raise _Outage(f"{url}: {response.status_code} {response.text[:300]}")
        try:
            answers = match_answers(items, JudgeAnswer.model_validate_json(response.content).verdicts)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ProtocolError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from error
        self._note_success(self._clock() - sent)
        return {answer.id: answer.to_verdict() for answer in answers}

    async def _wait_ready(self, timeout_s: float) -> GuardInfo:
        problem = "not asked yet"
        attempt = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    url = self._urls[attempt % len(self._urls)]
                    try:
                        response = await self._http.get(f"{url}/v1/guard", timeout=CONNECT_TIMEOUT)
                        _accepted(url, response)
                        if response.status_code == 200:
                            info = GuardInfo.model_validate_json(response.content)
                            self._batch_size = min(self._cfg.batch_size, info.max_items)
                            return info
                        problem = f"{url}: {response.status_code} {response.text[:300]}"
                    except (httpx.HTTPError, ValidationError) as error:
                        problem = f"{url}: {type(error).__name__}: {error}"
                    attempt += 1
                    await asyncio.sleep(min(self._backoff(attempt), 1.0))
        except TimeoutError as error:
            raise JudgeUnavailable(f"no judge is ready after {timeout_s:g} s; last: {problem}") from error

    def _backoff(self, attempt: int) -> float:
        """Seconds before the attempt: none until every replica was tried, then doubling, with jitter downwards."""
        rounds, replica = divmod(attempt, len(self._urls))
        if replica:
            return 0.0
        delay = min(self._cfg.backoff_max, self._cfg.backoff_initial * 2.0 ** min(rounds - 1, 30))
        return delay * self._random.uniform(0.5, 1.0)

    def _note_outage(self, outage: _Outage) -> None:
        if self._down_since is None:
            self._down_since = self._clock()
            logger.warning("waiting for the judge, up to %g s: %s", self._cfg.give_up_after, outage)

    def _note_success(self, latency: float) -> None:
        now = self._clock()
        self._last_success = now
        self._counters.answers += 1
        self._counters.latency_sum_s += latency
        self._counters.latency_max_s = max(self._counters.latency_max_s, latency)
        if self._down_since is not None:
            self._counters.outage_s += now - self._down_since
            logger.warning("the judge answers again after %.1f s", now - self._down_since)
            self._down_since = None


def refuse_unknown(cfg: JudgeConfig, unknown: int, total: int) -> None:
    """Raise TooManyUnknown if more than ``judge.max_unknown_share`` of ``total`` samples have no verdict."""
    if total and unknown / total > cfg.max_unknown_share:
        raise TooManyUnknown(
            f"the judge could not tell for {unknown} of {total} samples, "
            f"more than judge.max_unknown_share={cfg.max_unknown_share:g}"
        )


def _accepted(url: str, response: httpx.Response) -> None:
    if response.status_code in (401, 403):
        raise JudgeRefused(f"{url}: {response.status_code} {response.text[:300]}; see judge.token_env")


def _unknown(items: Sequence[JudgeItem], error: str) -> dict[str, Verdict]:
    return {item.id: replace(unknown_verdict(item, "none", error).to_verdict(), guard="") for item in items}
