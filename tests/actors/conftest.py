"""What tests of a role that a server plays share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from nemo_magic.actors.config import ActorConfig, RemoteConfig
from nemo_magic.rollout.remote import RemotePolicy
from tests.actors.chat_endpoint import Endpoint, Reply


@pytest.fixture
def endpoint() -> Iterator[Callable[..., Endpoint]]:
    started: list[Endpoint] = []

    def start(*script: Reply, **options: Any) -> Endpoint:
        started.append(Endpoint(*script, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def policy() -> Iterator[Callable[..., RemotePolicy]]:
    """Speakers with little patience between attempts; keywords are those of RemoteConfig, or whole parts."""
    opened: list[RemotePolicy] = []

    def build(*urls: str, options: ActorConfig | None = None, **remote: Any) -> RemotePolicy:
        settings: dict[str, Any] = {
            "model": "tiny",
            "backoff_initial": 0.01,
            "backoff_max": 0.05,
            "give_up_after": 60.0,
        }
        config = RemoteConfig(urls=list(urls), **(settings | remote))
        opened.append(RemotePolicy(replace(options or ActorConfig(), remote=config), "actors.attacker.remote"))
        return opened[-1]

    yield build
    for client in opened:
        client.close()
