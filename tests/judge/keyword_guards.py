"""Guards whose opinion can be read off the text: ``bad`` is unsafe, ``sorry`` refuses, anything else is useful."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards.base import ComputedGuard, Opinion
from nemo_magic.judge.protocol import Ask, JudgeItem, JudgeVerdict


def safety(text: str) -> Safety:
    return Safety.UNSAFE if "bad" in text else Safety.SAFE


class KeywordGuard(ComputedGuard):
    name = "keyword"
    revision = "1"

    def opinion(self, item: JudgeItem) -> Opinion:
        response = item.response or ""
        if "crash" in response:
            raise LookupError("cannot read this one")
        refused = "sorry" in response
        return Opinion(
            prompt_safety=safety(item.prompt),
            response_safety=safety(response),
            refusal=Answer.YES if refused else Answer.NO,
            helpful=None if "mumble" in response else Answer.NO if refused else Answer.YES,
            intent_preserved=Answer.YES if item.seed and item.seed.text in item.prompt else Answer.NO,
        )


class NarrowGuard(KeywordGuard):
    """Tells safety and refusal, as a guard model does."""

    name = "narrow"
    answers = frozenset({Ask.PROMPT_SAFETY, Ask.RESPONSE_SAFETY, Ask.REFUSAL})


class GatedGuard(KeywordGuard):
    """Says in ``entered`` that it was asked, and answers when ``gate`` exists."""

    def __init__(self, entered: str, gate: str) -> None:
        self._entered, self._gate = Path(entered), Path(gate)

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        if items[0].id == self.probe.id:
            return await super().judge(items)
        self._entered.touch()
        while not self._gate.exists():
            await asyncio.sleep(0.01)
        return await super().judge(items)


class SlowStartGuard(KeywordGuard):
    """Is loaded when ``gate`` is set, from any thread."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    async def start(self) -> None:
        while not self.gate.is_set():
            await asyncio.sleep(0.01)


class BrokenStartGuard(KeywordGuard):
    async def start(self) -> None:
        raise FileNotFoundError("no weights here")


class AbsentGuard(KeywordGuard):
    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        raise GuardUnavailable("its engine restarts")


class BrokenBatchGuard(KeywordGuard):
    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        raise ZeroDivisionError("a bug")


class ForgetfulGuard(KeywordGuard):
    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        return (await super().judge(items))[:-1]
