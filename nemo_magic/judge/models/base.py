"""The Model protocol: completes texts, in this process or on a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nemo_magic.game.episode import Message
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.telemetry import Telemetry

Sent = str | tuple[Message, ...]
"""A raw prompt, completed as it stands, or a chat, put into the model's own template."""


@dataclass(frozen=True, slots=True)
class Question:
    """One call of a guard's model; ``kind`` is the guard's name for what it asks.

    ``schema``: the JSON schema of the answer, for a model that can be held to one; None: any text. It follows from the
    guard and the kind, and tells no two questions apart.
    """

    kind: str
    sent: Sent
    max_tokens: int
    schema: Mapping[str, Any] | None = field(default=None, compare=False)


class Model(Protocol):
    """Completes at temperature 0. ``name`` and ``revision`` identify the weights; they are known once it started."""

    telemetry: Telemetry

    @property
    def takes_schema(self) -> bool:
        """Whether ``complete`` may be given the schema of a JSON answer."""
        ...

    @property
    def name(self) -> str:
        """Of the model, as verdicts have it."""
        ...

    @property
    def revision(self) -> str:
        """Of the weights and of whatever else changes the texts."""
        ...

    async def start(self) -> None:
        """Return once the model can be asked. Raises GuardUnavailable if a server does not get there in its time."""

    async def complete(self, sent: Sent, max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        """The text that follows, at most ``max_tokens`` of it, without special tokens; JSON that fits ``schema``, if
        one is given.

        Raises GuardUnavailable while the model cannot be asked, ValueError if this text can never be, e.g. too long.
        """
        ...

    async def close(self) -> None:
        """Free what ``start`` acquired."""


class WrongModel(GuardUnavailable):
    """Another model answers than the guard's own: its texts are not used."""


class ModelRefused(GuardUnavailable):
    """The server does not take the token, or has no such model or endpoint: somebody has to see to it."""
