"""Requests to a server that may be away: retries, replicas, rate limits, and when to give up.

The clients of a judge, of a role that a server plays, of a guard's model and of an embedding model share this.

The least busy of the replicas that are up is asked. Unavailability is waited out with backoff for as long as anybody
was answered within ``give_up_after`` seconds. What a reply means is its client's business: no answer is made up here,
and of two requests that were sent for one question only the first answer is used.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

import httpx

from nemo_magic.backports import timeout
from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.faults import BrokenReply, Unavailable, unavailable_from
from nemo_magic.net.http import Http
from nemo_magic.net.limits import Limiter, RateLimit, Reservation
from nemo_magic.net.replicas import Replicas
from nemo_magic.net.tasks import first_answer

logger = logging.getLogger(__name__)

T = TypeVar("T")
TokenCount = Callable[[T], int | None]
"""Tokens that an answer took, None where the server does not say."""

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection to open: an address that is gone must not cost a whole request timeout."""

_LATENCIES, _ENOUGH = 256, 32
"""How many latencies are stored, and from how many on a request can be called slow."""


@dataclass
class _Counters:
    requests: int = 0
    retries: int = 0
    hedges: int = 0
    protocol_errors: int = 0
    answers: int = 0
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0
    outage_s: float = 0.0
    limited: int = 0
    paced_s: float = 0.0


class RetryingClient:
    """Asks the replicas at ``cfg.urls`` on the running loop; ``clock`` (seconds) measures outages.

    ``noun`` is what logs and errors call the server, ``key`` where its settings are in the configuration;
    ``unavailable`` is raised after ``give_up_after``. ``probe``: the path that a replica which was down is asked for
    before it gets work again. ``hedge``: ask a second replica what the first has not answered within the 95th
    percentile of latencies. ``limit``: ceilings a minute, of all replicas together. Raises what ``cfg.token`` raises.
    """

    def __init__(
        self,
        cfg: EndpointConfig,
        noun: str,
        key: str,
        unavailable: type[Exception],
        clock: Callable[[], float] = time.monotonic,
        *,
        probe: str = "/models",
        hedge: bool = False,
        limit: RateLimit | None = None,
    ) -> None:
        self.urls = [url.rstrip("/") for url in cfg.urls]
        self._cfg = cfg
        self._noun = noun
        self._key = key
        self._unavailable = unavailable
        self._clock = clock
        self._probe_path = probe
        self._hedges = hedge
        token = cfg.token()
        self._counters = _Counters()
        # Its own: the process-wide generator belongs to the game, which has to be reproducible.
        self._random = random.Random()
        self._replicas = Replicas(len(self.urls), self._random.randrange(len(self.urls)))
        self._changed = asyncio.Event()
        self._line: deque[object] = deque()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._last_success = -math.inf
        self._last_outage: Unavailable | None = None
        self._down_since: float | None = None
        self._probes = set[asyncio.Task[None]]()
        self._slots = asyncio.Semaphore(cfg.max_concurrency)
        self._limiter = Limiter(limit or RateLimit())
        self._gate = asyncio.Lock()
        self._http = Http(
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            # A second request for the same question has a connection of its own, and so has a probe.
            max_connections=cfg.max_concurrency * (2 if hedge else 1) + len(self.urls),
            connect_timeout=min(CONNECT_TIMEOUT, cfg.request_timeout),
        )

    def stats(self) -> dict[str, float]:
        """Totals since the client began: counts of requests, latencies of answers, seconds of outage."""
        counters = asdict(self._counters)
        latency = counters.pop("latency_sum_s")
        if self._down_since is not None:
            counters["outage_s"] += self._clock() - self._down_since
        return counters | {"latency_mean_s": latency / max(self._counters.answers, 1)}

    def is_away(self) -> bool:
        """Whether a request failed for want of an answer, and none was answered since."""
        return self._down_since is not None

    async def aclose(self) -> None:
        """Cancel the probes and close the connections."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await self._http.aclose()

    async def ask(
        self, request: Callable[[str], Awaitable[T]], tokens: int = 0, count_tokens: TokenCount[T] | None = None
    ) -> T:
        """What ``request(url)`` returns, at whichever replica, however many attempts that takes.

        ``tokens``: what one attempt may take at most; ``count_tokens``: what an answer took.

        Raises ``unavailable`` where ``request`` raised Unavailable for ``give_up_after`` seconds, the last BrokenReply
        after ``protocol_retries`` more attempts, and anything else that ``request`` raises at once.
        """
        async with self._slots:
            began, broken, avoided, own = self._clock(), 0, set[int](), None
            while True:
                replica, reservation, began = await self._wait_for_permission(began, avoided, tokens, own)
                try:
                    answer = await self._attempt(request, replica, tokens)
                    reservation.tokens = (count_tokens(answer) if count_tokens else None) or tokens
                    return answer
                except Unavailable as outage:
                    own = outage
                    self._raise_if_too_late(began, outage)
                except BrokenReply:
                    self._counters.protocol_errors += 1
                    broken += 1
                    logger.warning("an answer of the %s breaks the protocol: %s", self._noun, self.urls[replica])
                    if broken > self._cfg.protocol_retries:
                        raise
                    # Rather another replica; where there is none, the same one a little later.
                    avoided = {replica} if len(self.urls) > 1 else set()
                    if not avoided:
                        await asyncio.sleep(self._backoff(broken))
                self._counters.retries += 1

    async def post(self, url: str, body: bytes) -> httpx.Response:
        """The reply to a post of JSON, whatever its status. Raises Unavailable without one in time, or BrokenReply."""
        return await self._within(url, self._http.post(url, body))

    async def get(self, url: str) -> httpx.Response:
        """The reply, whatever its status. Raises what ``post`` raises."""
        return await self._within(url, self._http.get(url, timeout=None))

    async def _within(self, url: str, asking: Awaitable[httpx.Response]) -> httpx.Response:
        try:
            async with timeout(self._cfg.request_timeout):
                return await asking
        except asyncio.TimeoutError as error:
            limit = f"{self._key}.request_timeout={self._cfg.request_timeout:g}"
            raise Unavailable(f"{url}: no answer within {limit} s") from error
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error

    async def until_ready(self, path: str, read: Callable[[str, httpx.Response], T], timeout_s: float) -> T:
        """What ``read(url, reply)`` makes of the first reply to GET ``path`` for which it does not raise Unavailable.

        Raises ``unavailable`` if that takes more than ``timeout_s`` seconds, and anything else that ``read`` raises.
        """
        problem = "not asked yet"
        attempt = 0
        try:
            async with timeout(timeout_s):
                while True:
                    url = self.urls[attempt % len(self.urls)]
                    try:
                        return read(url, await self._http.get(f"{url}{path}", timeout=CONNECT_TIMEOUT))
                    except (Unavailable, BrokenReply) as fault:
                        problem = str(fault)
                    except httpx.HTTPError as error:
                        problem = f"{url}: {type(error).__name__}: {error}"
                    attempt += 1
                    if attempt % len(self.urls) == 0:
                        await asyncio.sleep(min(self._backoff(attempt // len(self.urls)), 1.0))
        except asyncio.TimeoutError as error:
            raise self._unavailable(f"no {self._noun} is ready after {timeout_s:g} s; last: {problem}") from error

    # --- one request, and a second one where the first is slow

    async def _attempt(self, request: Callable[[str], Awaitable[T]], replica: int, tokens: int) -> T:
        self._replicas.acquire(replica)
        first = asyncio.create_task(self._send(request, replica))
        tasks = {first}
        try:
            slow_after = self._slow_after()
            if slow_after is not None:
                await asyncio.wait(tasks, timeout=slow_after)
                other = self._replicas.pick(_now(), {replica})
                if not first.done() and other is not None and self._limiter.pause(_now(), tokens) <= 0:
                    self._limiter.send(_now(), tokens)
                    self._counters.hedges += 1
                    self._replicas.acquire(other)
                    tasks.add(asyncio.create_task(self._send(request, other)))
            return await first_answer(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, request: Callable[[str], Awaitable[T]], replica: int) -> T:
        """One request; records what it says about its replica."""
        self._counters.requests += 1
        began, sent = _now(), self._clock()
        try:
            answer = await request(self.urls[replica])
        except Unavailable as outage:
            self._record_outage(outage, replica, began)
            raise
        except BrokenReply:
            self._replicas.succeed(replica)  # what it says is wrong, but it is there
            raise
        except BaseException:
            self._replicas.release(replica)
            raise
        else:
            self._record_success(self._clock() - sent, replica)
            return answer
        finally:
            self._wake_waiters()

    def _slow_after(self) -> float | None:
        """Seconds after which a second replica is asked too; None: it is not."""
        if not self._hedges or len(self.urls) == 1 or len(self._latencies) < _ENOUGH:
            return None
        return sorted(self._latencies)[int(0.95 * len(self._latencies))]

    # --- whose turn it is

    async def _wait_for_permission(
        self, began: float, besides: Collection[int], tokens: int, own: Unavailable | None
    ) -> tuple[int, Reservation, float]:
        """Wait for a replica, and until the ceilings allow a request of ``tokens``.

        ``began`` comes back later by the wait for the ceilings, during which no server was away.
        """
        if not self._limiter.limits:
            return await self._wait_for_turn(began, besides, own), Reservation(0.0, tokens), began
        arrived = self._clock()
        async with self._gate:
            began += self._clock() - arrived
            while True:
                replica = await self._wait_for_turn(began, besides, own)
                pause = self._limiter.pause(_now(), tokens)
                if pause <= 0:
                    return replica, self._limiter.send(_now(), tokens), began
                before = self._clock()
                # An answer may tell that less was taken than had been reserved.
                with suppress(asyncio.TimeoutError):
                    async with timeout(pause):
                        await self._changed.wait()
                began += self._clock() - before
                self._counters.paced_s += self._clock() - before

    async def _wait_for_turn(self, began: float, besides: Collection[int], own: Unavailable | None) -> int:
        """Wait until a replica may be asked; rather none of ``besides``. ``own``: what this request met last.

        The request that has waited longest is first. Without this order a request that keeps failing could take each
        turn of a replica that is down, and the others, which would bring it up, would wait as long as it goes on.

        Raises ``unavailable`` after ``give_up_after``.
        """
        turn = object()
        self._line.append(turn)
        try:
            while True:
                now = _now()
                if (lost := self._replicas.next_probe(now)) is not None:
                    self._begin_probe(lost)
                if self._line[0] is turn:
                    replica = self._replicas.pick(now, besides)
                    if replica is None:
                        replica = self._replicas.pick(now)
                    if replica is not None:
                        return replica
                pause = self._replicas.next_change(now)
                if self._last_outage is not None:
                    # A cooldown may be longer than there is time left.
                    pause = min(pause, max(0.0, self._cfg.give_up_after - self._waited(began)))
                with suppress(asyncio.TimeoutError):
                    async with timeout(None if math.isinf(pause) else pause):
                        await self._changed.wait()
                if self._last_outage is not None:
                    self._raise_if_too_late(began, own or self._last_outage)
        finally:
            self._line.remove(turn)
            if self._line:
                self._wake_waiters()

    def _wake_waiters(self) -> None:
        """Have everyone who waits for a turn look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _begin_probe(self, replica: int) -> None:
        self._replicas.acquire(replica)
        task = asyncio.create_task(self._probe(replica))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self, replica: int) -> None:
        began, url = _now(), f"{self.urls[replica]}{self._probe_path}"
        try:
            response = await self._http.get(url, timeout=CONNECT_TIMEOUT)
            if response.status_code >= 500 or response.status_code == 429:
                raise unavailable_from(url, response)
            self._replicas.succeed(replica)
            logger.warning("%s answers again and is asked again", self.urls[replica])
        except Unavailable as error:
            self._record_outage(error, replica, began)
        except BrokenReply:
            self._record_outage(Unavailable(f"{url}: its reply is too long"), replica, began)
        except httpx.HTTPError as error:
            self._record_outage(_unreachable(url, error), replica, began)
        except BaseException:
            self._replicas.release(replica)
            raise
        finally:
            self._wake_waiters()

    # --- when to give up

    def _raise_if_too_late(self, began: float, outage: Unavailable) -> None:
        waited = self._waited(began)
        if waited >= self._cfg.give_up_after:
            raise self._unavailable(
                f"no answer from {', '.join(self.urls)} for {waited:.0f} s "
                f"({self._key}.give_up_after={self._cfg.give_up_after:g}); last: {outage}"
            ) from outage

    def _waited(self, began: float) -> float:
        """Seconds without any answer, for a request that came at ``began``."""
        return self._clock() - max(began, self._last_success)

    def _backoff(self, failures: int) -> float:
        """Seconds after so many failures in a row: doubling, with jitter downwards."""
        delay = min(self._cfg.backoff_max, self._cfg.backoff_initial * 2.0 ** min(failures - 1, 30))
        return delay * self._random.uniform(0.5, 1.0)

    def _record_outage(self, outage: Unavailable, replica: int, began: float) -> None:
        failures = self._replicas.fail(replica, _now(), began)
        # A server that restarts guesses how long; one that counts requests knows.
        asked_for = min(outage.retry_after, self._cfg.give_up_after if outage.limited else self._cfg.backoff_max)
        self._counters.limited += outage.limited
        self._replicas.cooldown(replica, _now() + max(asked_for, self._backoff(failures)))
        # Everyone who waits may be shown it: what the server said belongs to who asked.
        self._last_outage = Unavailable(outage.public)
        if self._down_since is None:
            self._down_since = self._clock()
            logger.warning("waiting for the %s, up to %g s: %s", self._noun, self._cfg.give_up_after, outage.public)

    def _record_success(self, latency: float, replica: int) -> None:
        now = self._clock()
        self._replicas.succeed(replica)
        self._last_success = now
        self._latencies.append(latency)
        self._counters.answers += 1
        self._counters.latency_sum_s += latency
        self._counters.latency_max_s = max(self._counters.latency_max_s, latency)
        if self._down_since is not None:
            self._counters.outage_s += now - self._down_since
            logger.warning("the %s answers again after %.1f s", self._noun, now - self._down_since)
            self._down_since = None


def _unreachable(url: str, error: httpx.HTTPError) -> Unavailable:
    # Why no connection opens is the system's word; what is wrong with a reply may quote it.
    if isinstance(error, httpx.ConnectError):
        return Unavailable(f"{url}: {type(error).__name__}: {error}")
    return Unavailable(f"{url}: {type(error).__name__}:", words=str(error))


def _now() -> float:
    """The loop's own time, which is what sleeps."""
    return asyncio.get_running_loop().time()
