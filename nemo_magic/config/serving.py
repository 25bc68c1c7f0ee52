"""What can be set about serving an actor. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from nemo_magic.config_checks import CheckedConfig, NonNegativeFloat, OneOf, PositiveFloat, PositiveInt
from nemo_magic.net.endpoint import read_token
from nemo_magic.net.hosts import is_loopback


@dataclass
class ServeConfig(CheckedConfig):
    """``nemo-magic serve``: one role's actor behind an OpenAI-compatible HTTP server.

    ``model``: its name there; null: the role's. ``port`` 0 lets the system choose. ``token_env``: environment variable
    holding the bearer token; it has to be given where ``host`` is no loopback address. ``max_batch_size``: rows that
    are answered together; who waits meanwhile makes up the next batch. ``max_prompts`` per request and ``max_body_mb``
    (10^6 bytes) are answered with 413 when exceeded; while ``max_pending`` rows wait, or when an answer takes more than
    ``request_timeout`` seconds, with 503: come again; so is a connection while ``max_connections`` are open.
    ``drain_timeout``: seconds that requests in flight get to finish at shutdown.
    """

    KEY: ClassVar[str] = "serve"

    role: Annotated[str, OneOf("attacker", "defender")] = "defender"
    model: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Interval(ge=0, le=65535)] = 8000
    token_env: str | None = None
    max_batch_size: PositiveInt = 256
    max_prompts: PositiveInt = 256
    max_body_mb: PositiveFloat = 32.0
    max_pending: PositiveInt = 8192
    max_connections: PositiveInt = 4096
    request_timeout: PositiveFloat = 600.0
    drain_timeout: NonNegativeFloat = 60.0

    @property
    def name(self) -> str:
        """What the model is called in requests."""
        return self.model or self.role

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    def token(self) -> str | None:
        """The bearer token, or None where none is wanted.

        Raises ValueError if its variable is unset or empty, or if none is configured although others can reach
        ``host``.
        """
        if self.token_env is None and not self.is_loopback:
            raise ValueError(f"serve.host={self.host} can be reached by others: serve.token_env has to be set")
        return read_token("serve", self.token_env)
