"""Whose turn it is at a replica that is down."""

from __future__ import annotations

import asyncio

from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.faults import Unavailable
from nemo_magic.net.retrying_client import RetryingClient


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
            while len(requests) == seen:  # the replica is down again
                await asyncio.sleep(0)
            await client.ask(sound)
        await stuck
        await client.aclose()
        return requests

    requests = asyncio.run(work())
    # At most one that was sent before the sound request came, and one that was in line before it.
    assert "failing failing failing" not in " ".join(requests)
