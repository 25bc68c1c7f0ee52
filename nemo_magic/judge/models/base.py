"""What a model is: something that completes texts, near or far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nemo_magic.game.episode import Message
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.telemetry import Telemetry

Sent = str | tuple[Message, ...]
"""What a model is sent: a raw prompt, completed as it stands, or a chat, put into the model's own template."""


@dataclass(frozen=True, slots=True)
class Question:
    """One call of a guard's model. ``kind`` tells the guard what it asked."""

    kind: str
    sent: Sent
    max_tokens: int


class Model(Protocol):
    """Completes at temperature 0. ``name`` and ``revision`` identify the weights; they are known once it started."""

    observer: Telemetry

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    async def start(self) -> None:
        """Return once the model can be asked. Raises GuardUnavailable if it cannot within its patience."""

    async def complete(self, sent: Sent, max_tokens: int) -> str:
        """The text that follows, at most ``max_tokens`` of it, without special tokens.

        Raises GuardUnavailable while the model cannot be asked, ValueError if this text can never be, e.g. too long.
        """
        ...

    async def close(self) -> None:
        """Let go of what ``start`` took; what is under way ends as GuardUnavailable."""


class WrongModel(GuardUnavailable):
    """Another model answers where the guard's own was expected: nothing it says is used."""


class ModelRefused(GuardUnavailable):
    """The server does not take the token, or has no such model or endpoint: somebody has to see to it."""
