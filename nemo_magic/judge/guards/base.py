"""What a guard is: something that judges items, and two ways to be one.

A guard that computes answers returns an Opinion per item. A guard that is a language model renders an item into its own
prompt and parses what the model wrote. ``settle`` turns an opinion into the verdict of what was asked.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.protocol import JudgeItem, JudgeVerdict, unknown_verdict


class Guard(Protocol):
    """Judges batches. ``name`` and ``revision`` identify it in every verdict as ``name@revision``."""

    name: str
    revision: str

    async def start(self) -> None:
        """Load what judging needs; the server is not ready before this returned."""

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """One verdict an item. An item that fails alone is answered with unknown fields and an error.

        Raises GuardUnavailable if nothing can be judged now but may be later.
        """
        ...

    async def close(self) -> None:
        """Let go of what ``start`` took."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """All that a guard thinks of a conversation, asked or not; None where it cannot tell."""

    prompt_safety: Safety | None = None
    response_safety: Safety | None = None
    refusal: Answer | None = None
    helpful: Answer | None = None
    intent_preserved: Answer | None = None
    categories: tuple[str, ...] = ()


def settle(item: JudgeItem, opinion: Opinion, guard: str) -> JudgeVerdict:
    """What was asked out of an opinion; what the guard could not tell is unknown."""
    answers = {field.value: getattr(opinion, field) or field.unknown for field in item.ask}
    return JudgeVerdict.model_validate({"id": item.id, "guard": guard, "categories": opinion.categories} | answers)


def guard_id(guard: Guard) -> str:
    return f"{guard.name}@{guard.revision}"


class ComputedGuard(ABC):
    """A guard that computes its opinion of each item by itself."""

    name: str
    revision: str

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    @abstractmethod
    def opinion(self, item: JudgeItem) -> Opinion:
        """The opinion of one item; whatever it raises becomes that item's error."""

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        # In a thread: the server goes on answering health checks during a large batch.
        return await asyncio.to_thread(lambda: [_isolated(item, guard_id(self), self._settled) for item in items])

    def _settled(self, item: JudgeItem) -> JudgeVerdict:
        return settle(item, self.opinion(item), guard_id(self))


Complete = Callable[[Sequence[str]], Awaitable[Sequence[str]]]
"""Completes prompts with a language model, one text a prompt, in order. Raises GuardUnavailable while it is away."""


class TextGuard(ABC):
    """A guard that is a language model: ``render`` asks it, ``parse`` reads its answer."""

    name: str
    revision: str

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    @abstractmethod
    def render(self, item: JudgeItem) -> str:
        """The guard model's own prompt for an item."""

    @abstractmethod
    def parse(self, text: str) -> Opinion:
        """What the model's text says. Raises ValueError if it does not say anything readable."""

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        prompts: dict[str, str] = {}
        verdicts: dict[str, JudgeVerdict] = {}
        for item in items:
            try:
                prompts[item.id] = self.render(item)
            except Exception as error:
                verdicts[item.id] = unknown_verdict(item, guard_id(self), describe(error))
        texts = dict(zip(prompts, await self._complete(list(prompts.values())), strict=True)) if prompts else {}

        def settled(item: JudgeItem) -> JudgeVerdict:
            return settle(item, self.parse(texts[item.id]), guard_id(self))

        return [verdicts.get(item.id) or _isolated(item, guard_id(self), settled) for item in items]


def describe(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:500]


def _isolated(item: JudgeItem, guard: str, judge: Callable[[JudgeItem], JudgeVerdict]) -> JudgeVerdict:
    """The verdict of one item, whose failure is its own: the rest of the batch is still judged."""
    try:
        return judge(item)
    except GuardUnavailable:
        raise
    except Exception as error:
        return unknown_verdict(item, guard, describe(error))
