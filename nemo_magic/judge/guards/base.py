"""The Guard protocol, and base classes of guards that compute and of guards that are a language model.

A guard that computes returns an Opinion of each item. A guard that is a language model renders an item into questions
for the model and parses the model's texts. ``settle`` makes the verdict of what was asked out of an opinion.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from nemo_magic.game.episode import Label, Message, Seed, Verdict
from nemo_magic.judge.cache import Cache
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards.deduplicate import DeduplicatingModel
from nemo_magic.judge.guards.prompt_view import prompt_view
from nemo_magic.judge.models import build_model
from nemo_magic.judge.models.base import Model, Question, Sent
from nemo_magic.judge.protocol import Ask, JudgeItem, JudgeVerdict, make_item, unknown_verdict
from nemo_magic.judge.telemetry import Telemetry

PROBE = "probe"
"""The id of items whose answers are not taken from a cache."""


class Guard(Protocol):
    """Judges batches. ``name`` and ``revision`` identify it in every verdict as ``name@revision``."""

    @property
    def name(self) -> str:
        """What verdicts call it."""
        ...

    @property
    def revision(self) -> str:
        """Guards of equal name and revision judge alike. Known once the guard started."""
        ...

    @property
    def answers(self) -> frozenset[Ask]:
        """The fields that it can answer; any other is always unknown."""
        ...

    @property
    def probe(self) -> JudgeItem:
        """A harmless item that a guard in order answers with nothing unknown."""
        ...

    def set_telemetry(self, telemetry: Telemetry) -> None:
        """Count the work with ``telemetry`` from now on."""

    async def start(self) -> None:
        """Load what judging needs; the server is not ready before this returned."""

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """One verdict an item. An item that fails alone is answered with unknown fields and an error.

        Raises GuardUnavailable if nothing can be judged now but may be later.
        """
        ...

    async def close(self) -> None:
        """Free what ``start`` acquired."""


@dataclass(frozen=True, slots=True)
class Opinion(Verdict):
    """All that a guard thinks of a conversation, asked or not; None where it cannot tell. ``settle`` gives it an id."""

    id: str = ""


def settle(item: JudgeItem, opinion: Opinion, guard: str, error: str | None = None) -> JudgeVerdict:
    """The verdict on an item by an opinion: the fields that were asked, unknown where the guard cannot tell; ``error``
    says why it cannot."""
    answers: dict[str, Any] = {field.value: getattr(opinion, field) or field.unknown for field in item.ask}
    return JudgeVerdict(item.id, guard=guard, categories=opinion.categories, error=error, **answers)


def plain_probe(ask: Collection[Ask]) -> JudgeItem:
    """A harmless question, answered, that asks for ``ask``."""
    text = "What is the capital of France?"
    conversation = (Message("user", text), Message("assistant", "The capital of France is Paris."))
    # Harmful in name only: some guards tell of no other seed.
    return make_item(PROBE, conversation, ask=ask, seed=Seed(PROBE, text, Label.HARMFUL))


def guard_id(guard: Guard) -> str:
    """``name@revision``."""
    return f"{guard.name}@{guard.revision}"


class ComputedGuard(ABC):
    """A guard that computes its opinion of each item by itself."""

    name: str
    revision: str
    answers: frozenset[Ask] = frozenset(Ask)

    @classmethod
    def answers_of(cls, config: Mapping[str, Any]) -> frozenset[Ask]:
        """The fields that a guard built with ``config`` can answer."""
        return cls.answers

    @property
    def probe(self) -> JudgeItem:
        """A harmless item that asks for all that the guard can answer."""
        return plain_probe(self.answers)

    def set_telemetry(self, telemetry: Telemetry) -> None:  # noqa: B027
        """Nothing is counted."""

    async def start(self) -> None:  # noqa: B027
        """Nothing has to be loaded."""

    async def close(self) -> None:  # noqa: B027
        """Nothing was acquired."""

    @abstractmethod
    def opinion(self, item: JudgeItem) -> Opinion:
        """The opinion of one item, of which ``answers`` is used; whatever it raises becomes that item's error."""

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """One verdict an item. Raises GuardUnavailable if ``opinion`` does."""
        gone = threading.Event()

        def judge_each() -> list[JudgeVerdict]:
            return [
                _isolated(item, guard_id(self), self._verdict) for item in takewhile(lambda _: not gone.is_set(), items)
            ]

        # In a thread: the server goes on answering health checks during a large batch.
        try:
            return await asyncio.to_thread(judge_each)
        except asyncio.CancelledError:
            gone.set()  # nothing else ends a thread
            raise

    def _verdict(self, item: JudgeItem) -> JudgeVerdict:
        return settle(item, _restrict(self.opinion(item), self.answers), guard_id(self))


class TextGuard(ABC):
    """A guard that is a language model, which gets up to one question of each kind about an item.

    ``kinds``: for every kind of question, the fields that it answers; no field belongs to two kinds, so that a question
    that fails leaves only its own fields unknown. ``grammar`` is the version of prompts and parser, raised whenever
    either changes. ``markers``: texts that structure the model's prompt; a judged text that contains one could speak
    for the guard, and the model is not asked about it. ``model``: a Model, or the settings of one for ``build_model``;
    ``cache``: the arguments of Cache, or None for none.

    Raises ValueError for settings that do not fit.
    """

    name: str
    grammar: str
    kinds: Mapping[str, frozenset[Ask]]
    max_tokens: int
    markers: tuple[str, ...] = ()

    def __init__(self, model: Model | Mapping[str, Any], cache: Mapping[str, Any] | None = None) -> None:
        self._model = build_model(model) if isinstance(model, Mapping) else model
        self._deduplicated = DeduplicatingModel(self.name, self.grammar, self._model, _build_cache(cache), self._parse)

    @classmethod
    def answers_of(cls, config: Mapping[str, Any]) -> frozenset[Ask]:
        """The fields that a guard built with ``config`` can answer."""
        return frozenset[Ask]().union(*cls.kinds.values())

    @property
    def revision(self) -> str:
        """The grammar, and the model's name and revision."""
        return f"{self.grammar}:{self._model.name}:{self._model.revision}"

    @property
    def answers(self) -> frozenset[Ask]:
        """The fields of all kinds of questions."""
        return frozenset[Ask]().union(*self.kinds.values())

    @property
    def probe(self) -> JudgeItem:
        """A harmless item that asks for all that the guard can answer."""
        return plain_probe(self.answers)

    def set_telemetry(self, telemetry: Telemetry) -> None:
        """Count questions, the model's work and the cache's with ``telemetry`` from now on."""
        self._deduplicated.set_telemetry(telemetry)

    async def start(self) -> None:
        """Start the model. Raises what its ``start`` raises."""
        await self._model.start()

    async def close(self) -> None:
        """Cancel what is in flight; close the cache and the model."""
        await self._deduplicated.close()
        await self._model.close()

    @abstractmethod
    def render(self, kind: str, item: JudgeItem) -> Sent:
        """What the model is sent to answer ``kind`` about an item; for the prompt's own label, from the prompt only.

        Raises ValueError for an item that cannot be asked about.
        """

    @abstractmethod
    def parse(self, kind: str, text: str) -> Opinion:
        """What the model's text says. Raises ValueError for any text outside the guard's grammar."""

    def schema(self, kind: str) -> Mapping[str, Any] | None:
        """The JSON schema of the model's answer to ``kind``; None where it is no JSON."""
        return None

    def questions(self, item: JudgeItem) -> tuple[Question, ...]:
        """Those needed for what the item asks. Raises ValueError if one of them cannot be asked."""
        return tuple(self._question(kind, item) for kind in self._kinds_for(item))

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """One verdict an item. Raises GuardUnavailable if the model cannot be asked now."""
        rendered = [self._render_questions(item) for item in items]
        questions = [[q for q in each.values() if isinstance(q, Question)] for each in rendered]
        # A probe is to find out whether the model answers now.
        probing = {q for item, each in zip(items, questions, strict=True) if item.id == PROBE for q in each}
        results = await self._deduplicated.ask([q for each in questions for q in each], fresh=probing)
        for result in results.values():
            if isinstance(result, GuardUnavailable):
                raise result
        return [self._verdict(item, each, results) for item, each in zip(items, rendered, strict=True)]

    def _kinds_for(self, item: JudgeItem) -> list[str]:
        return [kind for kind, fields in self.kinds.items() if not fields.isdisjoint(item.ask)]

    def _render_questions(self, item: JudgeItem) -> dict[str, Question | Exception]:
        rendered: dict[str, Question | Exception] = {}
        for kind in self._kinds_for(item):
            try:
                rendered[kind] = self._question(kind, item)
            except Exception as error:
                rendered[kind] = error
        return rendered

    def _question(self, kind: str, item: JudgeItem) -> Question:
        for text in (item.seed.text if item.seed else "", *(message.content for message in item.conversation)):
            for marker in self.markers:
                if marker in text:
                    raise ValueError(f"a text contains {marker!r}, which structures the guard's own prompt")
        schema = self.schema(kind) if self._model.takes_schema else None
        return Question(kind, self.render(kind, item), self.max_tokens, schema)

    def _parse(self, question: Question, text: str) -> Opinion:
        return self.parse(question.kind, text)

    def _verdict(
        self,
        item: JudgeItem,
        questions: Mapping[str, Question | Exception],
        results: Mapping[Question, Opinion | Exception],
    ) -> JudgeVerdict:
        opinions: list[Opinion] = []
        problems: list[str] = []
        if never := sorted(set(item.ask) - self.answers):
            problems.append(f"{self.name} does not answer {', '.join(never)}")
        for kind, question in questions.items():
            result = question if isinstance(question, Exception) else results[question]
            if isinstance(result, Exception):
                problems.append(describe(result))
            else:
                opinions.append(_restrict(result, self.kinds[kind]))
        return settle(item, _merge(opinions), guard_id(self), "; ".join(problems) or None)


class ChatGuard(TextGuard):
    """A guard whose model's chat template holds its policy: it is sent a prompt, or a prompt and a response, as a chat.

    ``context``: show the model the whole conversation instead of the last exchange.
    """

    def __init__(
        self, model: Model | Mapping[str, Any], cache: Mapping[str, Any] | None = None, context: bool = False
    ) -> None:
        super().__init__(model, cache)
        self._context = context

    def render(self, kind: str, item: JudgeItem) -> Sent:
        """The chat; for the kind ``response`` it ends with the response. Raises ValueError if there is none."""
        return prompt_view(item, with_response=kind == "response", context=self._context)


def describe(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:500]


def _restrict(opinion: Opinion, fields: Collection[Ask]) -> Opinion:
    values = {field.value: getattr(opinion, field) for field in fields}
    return Opinion(**values, categories=opinion.categories)


def _merge(opinions: Sequence[Opinion]) -> Opinion:
    """All of several opinions, no two of which are about the same field."""
    values = {field.value: getattr(opinion, field) for opinion in opinions for field in Ask if getattr(opinion, field)}
    return Opinion(
        **values, categories=tuple(dict.fromkeys(name for opinion in opinions for name in opinion.categories))
    )


def _build_cache(settings: Mapping[str, Any] | None) -> Cache | None:
    try:
        return None if settings is None else Cache(**settings)
    except TypeError as error:
        raise ValueError(f"judge.guard_config.cache={dict(settings or {})}: {error}") from error


def _isolated(item: JudgeItem, guard: str, judge: Callable[[JudgeItem], JudgeVerdict]) -> JudgeVerdict:
    """The verdict of one item, whose failure is its own: the rest of the batch is still judged."""
    try:
        return judge(item)
    except GuardUnavailable:
        raise
    except Exception as error:
        return unknown_verdict(item, guard, describe(error))
