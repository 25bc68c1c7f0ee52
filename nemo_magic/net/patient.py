"""Asking a server that may be away, and knowing when to stop: what the clients of the judge and of a remote role share.

Replicas are asked in turn. Silence is waited out with backoff for as long as anybody was answered within
``give_up_after`` seconds. What an answer means is its client's own business: an answer is never made up here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import ValidationError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection to open: an address that is gone must not cost a whole request timeout."""


class Outage(Exception):
    """The server did not answer now and may later, not before ``retry_after`` seconds if it said so."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Broken(Exception):
    """The server answered something that is no answer to what was asked."""


class Settings(Protocol):
    """Where the replicas are and how patient a client is; all times in seconds."""

    urls: list[str]
    max_concurrency: int
    request_timeout: float
    give_up_after: float
    protocol_retries: int
    backoff_initial: float
    backoff_max: float

    def token(self) -> str | None: ...


@dataclass
class _Counters:
    requests: int = 0
    retries: int = 0
    protocol_errors: int = 0
    answers: int = 0
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0
    outage_s: float = 0.0


class Patient:
    """Asks the replicas at ``cfg.urls`` from a thread of its own; ``clock`` (seconds) is what patience is counted by.

    ``noun`` is what logs and errors call the server, ``key`` where its settings are in the configuration;
    ``unavailable`` is raised when patience ends. Raises what ``cfg.token`` raises.
    """

    def __init__(
        self, cfg: Settings, noun: str, key: str, unavailable: type[Exception], clock: Callable[[], float]
    ) -> None:
        self.urls = [url.rstrip("/") for url in cfg.urls]
        self._cfg = cfg
        self._noun = noun
        self._key = key
        self._unavailable = unavailable
        self._clock = clock
        token = cfg.token()
        self._counters = _Counters()
        # Its own: the process-wide generator belongs to the game, which has to be reproducible.
        self._random = random.Random()
        self._next_url = self._random.randrange(len(self.urls))
        self._rest_until = [0.0] * len(self.urls)
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
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{noun} client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on the client's thread. Raises RuntimeError once the client is closed."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError(f"the {self._noun} client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stats(self) -> dict[str, float]:
        """Totals since the client began: counts of requests, latencies of answers, seconds of outage."""
        counters = self._counters
        down = self._down_since
        return {
            "requests": counters.requests,
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

    async def ask(self, once: Callable[[str], Awaitable[T]]) -> T:
        """What ``once(url)`` returns, at one replica after the other, however many attempts that takes.

        ``once`` raises Outage or Broken to be tried again. Raises ``unavailable`` when patience ends, the last Broken
        after ``protocol_retries`` more attempts, and anything else that ``once`` raises at once.
        """
        self._next_url += 1
        first = self._next_url
        began: float | None = None
        broken = attempt = 0
        while True:
            replica = (first + attempt) % len(self.urls)
            await asyncio.sleep(max(self._backoff(attempt), self._rest(replica)))
            async with self._slots:
                if self._rest(replica) > 0:  # it asked for a rest while this request stood in line
                    continue
                began = self._clock() if began is None else began
                self._counters.requests += 1
                sent = self._clock()
                try:
                    answer = await once(self.urls[replica])
                    self._note_success(self._clock() - sent)
                    return answer
                except Outage as outage:
                    self._note_outage(outage, replica)
                    waited = self._clock() - max(began, self._last_success)
                    if waited >= self._cfg.give_up_after:
                        raise self._unavailable(
                            f"no answer from {', '.join(self.urls)} for {waited:.0f} s "
                            f"({self._key}.give_up_after={self._cfg.give_up_after:g}); last: {outage}"
                        ) from outage
                except Broken as fault:
                    self._counters.protocol_errors += 1
                    broken += 1
                    logger.warning("an answer of the %s breaks the protocol: %s", self._noun, fault)
                    if broken > self._cfg.protocol_retries:
                        raise
            attempt += 1
            self._counters.retries += 1

    async def post(self, url: str, body: bytes) -> httpx.Response:
        """Post JSON; the reply, whatever its status. Raises Outage if none is there within ``request_timeout``."""
        try:
            async with asyncio.timeout(self._cfg.request_timeout):
                return await self._http.post(url, content=body, headers={"Content-Type": "application/json"})
        except TimeoutError as error:
            limit = f"{self._key}.request_timeout={self._cfg.request_timeout:g}"
            raise Outage(f"{url}: no answer within {limit} s") from error
        except httpx.HTTPError as error:
            raise Outage(f"{url}: {type(error).__name__}: {error}") from error

    async def until_ready(self, path: str, read: Callable[[str, httpx.Response], T], timeout_s: float) -> T:
        """What ``read(url, reply)`` makes of the first reply to GET ``path`` for which it does not raise Outage.

        Raises ``unavailable`` if that takes more than ``timeout_s`` seconds, and anything else that ``read`` raises.
        """
        problem = "not asked yet"
        attempt = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    url = self.urls[attempt % len(self.urls)]
                    try:
                        return read(url, await self._http.get(f"{url}{path}", timeout=CONNECT_TIMEOUT))
                    except Outage as outage:
                        problem = str(outage)
                    except httpx.HTTPError as error:
                        problem = f"{url}: {type(error).__name__}: {error}"
                    attempt += 1
                    await asyncio.sleep(min(self._backoff(attempt), 1.0))
        except TimeoutError as error:
            raise self._unavailable(f"no {self._noun} is ready after {timeout_s:g} s; last: {problem}") from error

    async def _shutdown(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._http.aclose()

    def _backoff(self, attempt: int) -> float:
        """Seconds before the attempt: none until every replica was tried, then doubling, with jitter downwards."""
        rounds, replica = divmod(attempt, len(self.urls))
        if replica or not rounds:
            return 0.0
        delay = min(self._cfg.backoff_max, self._cfg.backoff_initial * 2.0 ** min(rounds - 1, 30))
        return delay * self._random.uniform(0.5, 1.0)

    def _rest(self, replica: int) -> float:
        """Seconds for which the replica asked to be left alone, by the loop's clock, which is what sleeps."""
        return self._rest_until[replica] - self._loop.time()

    def _note_outage(self, outage: Outage, replica: int) -> None:
        self._rest_until[replica] = self._loop.time() + min(outage.retry_after, self._cfg.backoff_max)
        if self._down_since is None:
            self._down_since = self._clock()
            logger.warning("waiting for the %s, up to %g s: %s", self._noun, self._cfg.give_up_after, outage)

    def _note_success(self, latency: float) -> None:
        now = self._clock()
        self._last_success = now
        self._counters.answers += 1
        self._counters.latency_sum_s += latency
        self._counters.latency_max_s = max(self._counters.latency_max_s, latency)
        if self._down_since is not None:
            self._counters.outage_s += now - self._down_since
            logger.warning("the %s answers again after %.1f s", self._noun, now - self._down_since)
            self._down_since = None


async def gather(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of ``works``, in order; the first error cancels what is left."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def outage(url: str, response: httpx.Response, words: str | None = None) -> Outage:
    """A reply that says: not now. ``words`` of the server, by default the beginning of the body."""
    said = response.text if words is None else words
    return Outage(f"{url}: {response.status_code} {said[:300]}", retry_after(response))


def retry_after(response: httpx.Response) -> float:
    """Seconds of the reply's Retry-After header, which may also be a date; 0 if it has none that can be read."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds)


def first_fault(error: ValidationError) -> str:
    """In a line, and without the input: texts of conversations belong in no log."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
