"""The wire format: what a judge is asked and what it answers, as JSON.

One item is a conversation and the fields asked about it; one verdict answers exactly these fields. A field that was not
asked is absent, one that the judge cannot tell is ``unknown``: no field ever has a default. Both sides parse strictly
and refuse keys that they do not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from nemo_magic.backports import StrEnum
from nemo_magic.game.episode import VERDICT_FIELDS, Answer, Episode, Label, Message, Safety, Seed, Verdict
from nemo_magic.judge.errors import ProtocolError


class Ask(StrEnum):
    """The fields of a verdict that can be asked for: the names in VERDICT_FIELDS."""

    PROMPT_SAFETY = "prompt_safety"
    RESPONSE_SAFETY = "response_safety"
    REFUSAL = "refusal"
    HELPFUL = "helpful"
    INTENT_PRESERVED = "intent_preserved"

    @property
    def unknown(self) -> Safety | Answer:
        """The value of a judge that cannot tell."""
        return VERDICT_FIELDS[self].UNKNOWN

    @property
    def known(self) -> tuple[str, ...]:
        """The values of a judge that can tell."""
        return tuple(value for value in map(str, VERDICT_FIELDS[self]) if value != self.unknown)


_OF_PROMPT = frozenset({Ask.PROMPT_SAFETY, Ask.INTENT_PRESERVED})


_STRICT = ConfigDict(strict=True, extra="forbid")


class _Wire(BaseModel):
    model_config = _STRICT | ConfigDict(frozen=True)

    def to_json(self) -> str:
        """This value as JSON, absent fields left out."""
        return self.model_dump_json(exclude_none=True)


class JudgeSeed(_Wire):
    """The query that the attacker was given."""

    text: str
    label: Label


class JudgeMessage(_Wire):
    """One message of the conversation as the defender saw it."""

    role: Literal["system", "user", "assistant"]
    content: str


class JudgeItem(_Wire):
    """One conversation to judge; the last user and assistant messages are what is judged, the rest is context."""

    id: str = Field(min_length=1, max_length=200)
    seed: JudgeSeed | None = None
    conversation: Annotated[tuple[JudgeMessage, ...], FailFast()]
    ask: Annotated[tuple[Ask, ...], FailFast(), Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_judged(self) -> JudgeItem:
        if len(set(self.ask)) != len(self.ask):
            raise ValueError("a field is asked twice")
        if not any(message.role == "user" for message in self.conversation):
            raise ValueError("the conversation has no user message")
        about_response = [field.value for field in self.ask if field not in _OF_PROMPT]
        if about_response and self.conversation[-1].role != "assistant":
            raise ValueError(f"asks {', '.join(about_response)} of a conversation that does not end with a response")
        if Ask.INTENT_PRESERVED in self.ask and self.seed is None:
            raise ValueError("asks intent_preserved without a seed")
        return self

    @property
    def prompt(self) -> str:
        """The last user message."""
        return next(message.content for message in reversed(self.conversation) if message.role == "user")

    @property
    def response(self) -> str | None:
        """The last message if it is the assistant's."""
        last = self.conversation[-1]
        return last.content if last.role == "assistant" else None

    @property
    def chars(self) -> int:
        """Length of all texts together, in characters."""
        return sum(len(message.content) for message in self.conversation) + (len(self.seed.text) if self.seed else 0)

    def content(self) -> str:
        """Everything but the id: two items with equal content have the same verdict."""
        return self.model_dump_json(exclude={"id"})


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class JudgeVerdict(Verdict):
    """The answer to one item, as it is sent. ``error`` says why a field is unknown, and is absent where none is.

    ``disagreed``: fields on which the members of an ensemble differ, whatever its rule made of them.
    """

    disagreed: tuple[Ask, ...] = ()
    guard: Annotated[str, Field(min_length=1)] = dataclasses.field(kw_only=True)

    def to_verdict(self) -> Verdict:
        """The game's own value."""
        return Verdict(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Verdict)})


class JudgeBatch(_Wire):
    """Body of a request. One wrong item is enough to refuse it: a million of them cost no more than one."""

    items: Annotated[tuple[JudgeItem, ...], FailFast(), Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> JudgeBatch:
        if len({item.id for item in self.items}) != len(self.items):
            raise ValueError("two items have the same id")
        return self


class JudgeAnswer(_Wire):
    """Body of an answer: one verdict an item, in any order."""

    verdicts: tuple[JudgeVerdict, ...]


class GuardInfo(_Wire):
    """The guard at this address, the fields it can answer (others are always unknown), and the limits of a request."""

    guard: str
    answers: tuple[Ask, ...]
    max_items: int = Field(ge=1)
    max_chars: int = Field(ge=1)


def to_request(episode: Episode, ask: Iterable[str]) -> JudgeItem:
    """The item that asks for the fields ``ask`` (``RewardConfig.needs()``) of a played episode.

    Its id is unique within a step. Raises ValueError for a field that cannot be asked.
    """
    return make_item(
        f"{episode.seed.id}#{episode.group}.{episode.sample}", episode.conversation, ask=ask, seed=episode.seed
    )


def make_item(id: str, conversation: Sequence[Message], *, ask: Iterable[str], seed: Seed | None = None) -> JudgeItem:
    """An item from the game's own types. Raises ValueError for one that cannot be judged."""
    return JudgeItem.model_validate(
        {
            "id": id,
            "seed": None if seed is None else {"text": seed.text, "label": seed.label},
            "conversation": tuple({"role": message.role, "content": message.content} for message in conversation),
            "ask": tuple(sorted(Ask(name) for name in ask)),
        }
    )


def unknown_verdict(item: JudgeItem, guard: str, error: str) -> JudgeVerdict:
    """All that was asked is unknown; ``error`` says why."""
    fields: dict[str, Any] = {field.value: field.unknown for field in item.ask}
    return JudgeVerdict(item.id, guard=guard, error=error, **fields)


def match_answers(
    items: Sequence[JudgeItem], verdicts: Sequence[JudgeVerdict], guard: str | None = None
) -> list[JudgeVerdict]:
    """The verdicts in the order of their items, matched by id.

    Raises ProtocolError unless there is exactly one verdict for every item, answering the fields that it asked and no
    others, and an error only where something is unknown; if ``guard`` is given, unless each names it.
    """
    if len(verdicts) != len(items):
        raise ProtocolError(f"{len(verdicts)} verdicts for {len(items)} items")
    by_id = {verdict.id: verdict for verdict in verdicts}
    if len(by_id) != len(verdicts):
        raise ProtocolError("two verdicts have the same id")
    matched = []
    for item in items:
        verdict = by_id.get(item.id)
        if verdict is None:
            raise ProtocolError(f"no verdict for item {item.id!r}")
        answered = {field for field in Ask if getattr(verdict, field) is not None}
        if missing := sorted(set(item.ask) - answered):
            raise ProtocolError(f"verdict {item.id!r} lacks {', '.join(missing)}")
        if unasked := sorted(answered - set(item.ask)):
            raise ProtocolError(f"verdict {item.id!r} answers {', '.join(unasked)}, which was not asked")
        if verdict.error is not None and not has_unknown(verdict):
            raise ProtocolError(f"verdict {item.id!r} carries an error but nothing in it is unknown")
        if foreign := sorted(set(verdict.disagreed) - set(item.ask)):
            raise ProtocolError(f"verdict {item.id!r} disagrees on {', '.join(foreign)}, which was not asked")
        if guard is not None and verdict.guard != guard:
            raise ProtocolError(f"verdict {item.id!r} names the guard {verdict.guard}, which {guard} is not")
        matched.append(verdict)
    return matched


def has_unknown(verdict: Verdict) -> bool:
    """Whether any field that was asked is unknown."""
    return any(getattr(verdict, field) == field.unknown for field in Ask)
