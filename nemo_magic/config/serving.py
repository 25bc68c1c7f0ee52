"""What can be set about serving an actor. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_magic.net.endpoint import read_token
from nemo_magic.net.hosts import is_loopback

ROLES = ("attacker", "defender")


@dataclass
class ServeConfig:
    """``nemo-magic serve``: one role's actor behind an OpenAI-compatible HTTP server.

    ``model``: its name there; null: the role's. ``port`` 0 lets the system choose. ``token_env``: environment variable
    holding the bearer token; it has to be given where ``host`` is no loopback address. ``max_batch_size``: rows that
    are answered together; who waits meanwhile makes up the next batch. ``max_prompts`` per request and ``max_body_mb``
    (10^6 bytes) are answered with 413 when exceeded; while ``max_pending`` rows wait, or when an answer takes more than
    ``request_timeout`` seconds, with 503: come again. ``drain_timeout``: seconds that requests in flight get to finish
    at shutdown.
    """

    role: str = "defender"
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_env: str | None = None
    max_batch_size: int = 256
    max_prompts: int = 256
    max_body_mb: float = 32.0
    max_pending: int = 8192
    request_timeout: float = 600.0
    drain_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"serve.role={self.role!r} must be one of: {', '.join(ROLES)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"serve.port={self.port} must be between 0 (any free port) and 65535")
        for key in ("max_batch_size", "max_prompts", "max_body_mb", "max_pending", "request_timeout"):
            if not getattr(self, key) > 0:
                raise ValueError(f"serve.{key}={getattr(self, key)} must be greater than 0")
        if self.drain_timeout < 0:
            raise ValueError(f"serve.drain_timeout={self.drain_timeout} must be at least 0")

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
