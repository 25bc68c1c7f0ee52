"""Where a server is and how patient its clients are: the keys that all servers of a configuration have in common.

The configuration of each server derives from one of these classes, adds keys of its own and sets its own defaults.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar
from urllib.parse import urlsplit

from nemo_magic.config_checks import CheckedConfig, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_magic.net.limits import RateLimit

MASK = "***"
"""Stands in a saved configuration where something secret stood."""


def read_token(key: str, token_env: str | None) -> str | None:
    """The value of the environment variable ``token_env``, which ``<key>.token_env`` names; None where there is none.

    Raises ValueError if the variable is unset or empty.
    """
    if token_env is None:
        return None
    token = os.environ.get(token_env, "")
    if not token:
        raise ValueError(f"{key}.token_env={token_env}: this environment variable is unset or empty")
    return token


@dataclass
class EndpointConfig(CheckedConfig):
    """A server that is asked over HTTP. All times in seconds.

    ``urls``: replicas of one server. ``token_env``: environment variable holding the bearer token; the token itself is
    in no file.

    A client has ``max_concurrency`` requests in flight, each with ``request_timeout`` from first byte to last. While
    nothing answers it tries again after ``backoff_initial``, doubled each time up to ``backoff_max`` and jittered,
    until ``give_up_after`` passed without any success. A reply that is no answer is asked for ``protocol_retries`` more
    times.
    """

    KEY: ClassVar[str] = "endpoint"

    urls: list[str] = field(default_factory=list)
    token_env: str | None = None
    max_concurrency: PositiveInt = 8
    request_timeout: PositiveFloat = 60.0
    give_up_after: PositiveFloat = 600.0
    protocol_retries: NonNegativeInt = 3
    backoff_initial: PositiveFloat = 0.2
    backoff_max: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for url in self.urls:
            self._check_url(url)

    def token(self) -> str | None:
        """The bearer token, or None where none is wanted.

        Raises ValueError if its variable is unset or empty, or a url is a saved one with its password masked.
        """
        for url in self.urls:
            if f"{MASK}@" in url or f"={MASK}" in url:
                raise ValueError(
                    f"{self.KEY}.urls={url!r}: what was secret in it was masked when the configuration was saved; give "
                    f"the url again: {self.KEY}.urls=[...]"
                )
        return read_token(self.KEY, self.token_env)

    def _check_url(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{self.KEY}.urls={url!r} must start with one of: http://, https://")


@dataclass
class OpenAIEndpointConfig(EndpointConfig):
    """An OpenAI-compatible server. ``urls``: base urls as OpenAI clients take them, ending in ``/v1``. ``model``: its
    name there.
    """

    ROUTES: ClassVar[tuple[str, ...]] = ()
    """What the client adds to a base url."""

    model: str | None = None

    def _check_url(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not parts.path.strip("/"):
            raise ValueError(f"{self.KEY}.urls={url!r} must be a base url such as http://host:8000/v1")
        for route in self.ROUTES:
            if parts.path.rstrip("/").endswith(route):
                raise ValueError(f"{self.KEY}.urls={url!r} must end before {route}, which is added")


@dataclass
class GenerationEndpointConfig(OpenAIEndpointConfig):
    """An OpenAI-compatible server that generates texts. ``extra_body``: further keys of each request, e.g.
    ``{chat_template_kwargs: {enable_thinking: false}}``. ``rate_limit``: ceilings a minute.
    """

    ROUTES: ClassVar[tuple[str, ...]] = ("/chat/completions", "/completions")

    extra_body: dict[str, Any] = field(default_factory=dict)
    rate_limit: RateLimit = field(default_factory=RateLimit)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rate_limit, Mapping):  # as YAML has it
            known = [one.name for one in fields(RateLimit)]
            if unknown := set(self.rate_limit) - set(known):
                raise ValueError(f"{self.KEY}.rate_limit has no {sorted(unknown)[0]}: there are {', '.join(known)}")
            self.rate_limit = RateLimit(**self.rate_limit)

    def _check_extra_body(self, fixed: Iterable[str], omittable: Iterable[str], follows_from: str) -> None:
        """Refuse the keys of ``extra_body`` that the client sets itself; those in ``omittable`` may be null."""
        for name, value in self.extra_body.items():
            if name in omittable and value is not None:
                can = "may only be null, which leaves it out"
            elif name in fixed:
                can = "cannot be set here"
            else:
                continue
            raise ValueError(f"{self.KEY}.extra_body.{name}={value!r} {can}: it follows from {follows_from}")
