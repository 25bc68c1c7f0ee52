"""Ceilings a minute: as a state machine, at a made-up endpoint in made-up time, and at a server that counts."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from itertools import pairwise

import pytest

from nemo_magic.net.faults import Unavailable
from nemo_magic.net.limits import Limiter, RateLimit, likely_tokens
from nemo_magic.net.retrying_client import RetryingClient
from tests.net.made_up_time import Gone, MadeUpTime, Settings, run


class Counter:
    """An endpoint of its own opinion about how much it may be asked in any 60 seconds; every excess is a violation."""

    def __init__(self, loop: MadeUpTime, requests: int | None, tokens: int | None) -> None:
        self.loop, self.requests, self.tokens = loop, requests, tokens
        self.seen: deque[tuple[float, int]] = deque()
        self.violations = self.answered = 0

    async def ask(self, tokens: int, delay: float) -> int:
        await asyncio.sleep(delay)
        now = self.loop.time()
        while self.seen and self.seen[0][0] <= now - 60:
            self.seen.popleft()
        self.seen.append((now, tokens))
        self.violations += self.requests is not None and len(self.seen) > self.requests
        self.violations += self.tokens is not None and sum(taken for _, taken in self.seen) > self.tokens
        self.answered += 1
        return tokens


@pytest.mark.parametrize(
    ("limit", "reserved", "taken"),
    [
        (RateLimit(requests_per_minute=30), 0, 0),
        (RateLimit(tokens_per_minute=1000), 100, 100),
        (RateLimit(tokens_per_minute=1000), 100, 35),
        (RateLimit(40, 900), 60, 45),
    ],
)
def test_no_minute_of_the_server_has_more_than_its_ceilings(limit: RateLimit, reserved: int, taken: int) -> None:
    draw, asked = random.Random(3), 150
    server: list[Counter] = []

    async def work(loop: MadeUpTime) -> None:
        counter = Counter(
            loop, *(None if x is None else int(x) for x in (limit.requests_per_minute, limit.tokens_per_minute))
        )
        server.append(counter)
        client = RetryingClient(Settings(max_concurrency=12), "server", "remote", Gone, loop.time, limit=limit)

        async def one() -> None:
            delay = draw.uniform(0, 0.9)
            await client.ask(lambda url: counter.ask(taken, delay), reserved, lambda tokens: tokens)

        await asyncio.gather(*(one() for _ in range(asked)))
        assert client.stats()["paced_s"] > 0
        await client.aclose()

    seconds = run(work)
    assert server[0].answered == asked
    assert server[0].violations == 0
    # Nor is it asked much less than it lets itself be, once the server has told what was taken.
    needed = max(asked / (limit.requests_per_minute or 1e9), asked * taken / (limit.tokens_per_minute or 1e9))
    assert 60 * (needed - 1) < seconds < 61 * 1.35 * needed + 61


def test_without_ceilings_nothing_waits() -> None:
    async def work(loop: MadeUpTime) -> None:
        client = RetryingClient(Settings(), "server", "remote", Gone, loop.time)
        counter = Counter(loop, None, None)
        await asyncio.gather(*(client.ask(lambda url: counter.ask(1, 0.5)) for _ in range(16)))
        assert client.stats()["paced_s"] == 0
        await client.aclose()

    assert run(work) == pytest.approx(1.0)


def test_a_request_larger_than_the_ceiling_has_a_minute_of_its_own() -> None:
    limiter = Limiter(RateLimit(tokens_per_minute=100))
    assert limiter.pause(0.0, 5000) == 0
    limiter.send(0.0, 5000)
    assert limiter.pause(10.0, 1) == pytest.approx(51.0)
    assert limiter.pause(61.0, 5000) == 0


def test_what_was_not_taken_is_free_at_once() -> None:
    limiter = Limiter(RateLimit(tokens_per_minute=100))
    ticket = limiter.send(0.0, 100)
    assert limiter.pause(1.0, 60) == pytest.approx(60.0)
    ticket.tokens = 40
    assert limiter.pause(1.0, 60) == 0


def test_waiting_for_a_ceiling_is_nobodys_silence() -> None:
    """One request a minute, ten seconds of patience: every second one fails once, and nobody gives up."""
    asked: list[float] = []

    async def work(loop: MadeUpTime) -> None:
        client = RetryingClient(Settings(give_up_after=10.0), "server", "remote", Gone, loop.time, limit=RateLimit(1))

        async def once(url: str) -> str:
            asked.append(loop.time())
            if len(asked) % 2:
                raise Unavailable("busy", 2.0, limited=True)
            return "yes"

        assert await asyncio.gather(*(client.ask(once) for _ in range(3))) == ["yes"] * 3
        assert client.stats()["limited"] == 3
        await client.aclose()

    run(work)
    assert len(asked) == 6
    assert all(after - before >= 60 for before, after in pairwise(asked))


def test_a_server_that_counts_is_left_alone_as_long_as_it_asks_and_one_that_restarts_for_backoff_max() -> None:
    for limited, rest in ((True, 40.0), (False, 4.0)):
        asked: list[float] = []

        async def work(loop: MadeUpTime, asked: list[float] = asked, limited: bool = limited) -> None:
            client = RetryingClient(Settings(), "server", "remote", Gone, loop.time)

            async def once(url: str) -> str:
                asked.append(loop.time())
                if len(asked) == 1:
                    raise Unavailable("later", 40.0, limited=limited)
                return "yes"

            assert await client.ask(once) == "yes"
            await client.aclose()

        run(work)
        assert asked[1] - asked[0] == pytest.approx(rest)


def test_a_rest_longer_than_the_patience_ends_it() -> None:
    async def work(loop: MadeUpTime) -> None:
        client = RetryingClient(Settings(give_up_after=30.0), "server", "remote", Gone, loop.time)

        async def once(url: str) -> str:
            raise Unavailable("tomorrow", 86400.0, limited=True)

        with pytest.raises(Gone, match="remote.give_up_after=30.*tomorrow"):
            await client.ask(once)
        await client.aclose()

    assert run(work) == pytest.approx(30.0)


@pytest.mark.parametrize("key", ["requests_per_minute", "tokens_per_minute"])
def test_a_ceiling_of_nothing_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"rate_limit.{key}=0 must be greater than 0, or null"):
        RateLimit(**{key: 0})


def test_ranks_share_a_ceiling_and_a_prompt_is_guessed_by_its_bytes() -> None:
    assert RateLimit(60, 1000).shared(4) == RateLimit(15, 250)
    assert RateLimit().shared(4) == RateLimit()
    assert likely_tokens(b"x" * 300, 50) == 150
