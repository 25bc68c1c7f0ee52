"""Models that say what a test wants, and an observer that remembers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from nemo_magic.game.episode import Label, Message, Seed
from nemo_magic.judge.models.base import Sent
from nemo_magic.judge.protocol import JudgeItem, make_item
from nemo_magic.judge.telemetry import NO_TELEMETRY


class ScriptedModel:
    """Says what ``say`` makes of what it is sent, once ``gate`` is open; an exception instead of a text is raised."""

    def __init__(
        self,
        say: Callable[[Sent], str | Exception],
        name: str = "tiny",
        revision: str = "1",
        takes_schema: bool = False,
    ) -> None:
        self.name, self.revision = name, revision
        self.takes_schema = takes_schema
        self.schemas: list[Mapping[str, Any] | None] = []
        self.telemetry = NO_TELEMETRY
        self.sent: list[Sent] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._say = say

    async def start(self) -> None:
        return None

    async def complete(self, sent: Sent, max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        self.sent.append(sent)
        self.schemas.append(schema)
        await self.gate.wait()
        said = self._say(sent)
        if isinstance(said, Exception):
            raise said
        return said

    async def close(self) -> None:
        return None


class Remembering:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.values: dict[str, list[float]] = {}

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        self.counts[name] += n

    def observe(self, name: str, value: float, **labels: str) -> None:
        self.values.setdefault(name, []).append(value)


def talk(
    id: str, prompt: str = "ask", response: str | None = "reply", *ask: str, label: Label = Label.HARMFUL
) -> JudgeItem:
    said = (Message("user", prompt), *([] if response is None else [Message("assistant", response)]))
    return make_item(id, said, ask=ask or ("response_safety",), seed=Seed("s", "seed words", label))


def words(sent: Sent) -> str:
    return sent if isinstance(sent, str) else "\n".join(message.content for message in sent)
