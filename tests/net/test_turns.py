"""Whose turn it is at a replica that is down."""

from __future__ import annotations

import asyncio

import pytest

from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.faults import Unavailable
from nemo_magic.net.retrying_client import RetryingClient
from tests.net.made_up_time import Gone, MadeUpTime, run
from tests.waiting import until


def test_a_request_that_keeps_failing_takes_no_turn_of_the_others() -> None:
    async def work() -> list[str]:
        config = EndpointConfig(urls=["http://a"], backoff_initial=0.001, backoff_max=0.002)
        client = RetryingClient(config, "server", "remote", RuntimeError)
        requests: list[str] = []

        async def failing(url: str) -> None:
            requests.append("failing")
            if requests.count("sound") < 20:
                raise Unavailable("busy")

        async def sound(url: str) -> None:
            requests.append("sound")

        stuck = asyncio.create_task(client.ask(failing))
        for _ in range(20):
            seen = len(requests)
            await until(lambda seen=seen: len(requests) > seen)  # the replica is down again
            await client.ask(sound)
        await stuck
        await client.aclose()
        return requests

    requests = asyncio.run(work())
    # At most one that was sent before the sound request came, and one that was in line before it.
    assert "failing failing failing" not in " ".join(requests)


def test_no_cooldown_outlasts_the_time_after_which_a_client_gives_up() -> None:
    async def work(loop: MadeUpTime) -> None:
        config = EndpointConfig(urls=["http://a"], give_up_after=5, backoff_initial=2, backoff_max=60)
        client = RetryingClient(config, "server", "remote", Gone, loop.time)

        async def failing(url: str) -> None:
            raise Unavailable("gone")

        with pytest.raises(Gone, match="no answer from http://a for 5 s"):
            await client.ask(failing)
        await client.aclose()

    assert run(work) == pytest.approx(5)
