"""The nouns of the game: seeds, completions, turns, episodes and verdicts.

Plain immutable values. Nothing here knows tensors, models or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args, get_type_hints

from nemo_magic.backports import StrEnum


class Role(StrEnum):
    """The part that a model plays: the attacker rewrites seeds, the defender answers them."""

    ATTACKER = "attacker"
    DEFENDER = "defender"

    @property
    def opponent(self) -> Role:
        """The other role."""
        return Role.DEFENDER if self is Role.ATTACKER else Role.ATTACKER


class Label(StrEnum):
    """What a seed query asks for, before any rewrite."""

    HARMFUL = "harmful"
    BENIGN = "benign"


class Safety(StrEnum):
    """A guard's verdict on a prompt or a response."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    CONTROVERSIAL = "controversial"
    UNKNOWN = "unknown"


class Answer(StrEnum):
    """A guard's answer to a yes/no question."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Seed:
    """A labelled query ``x`` of the RL pool."""

    id: str
    text: str
    label: Label


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The response that a model sampled for one prompt.

    ``response_ids`` are the sampled ids, the end token included when one was sampled; training uses exactly these.
    ``logprobs`` (one per response id, nats, at the sampling temperature) are the generator's own. ``text`` is the
    decoded response without end token or stop string. ``finished`` is False when the length limit cut the response.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A model was asked and gave no text. Nothing is known of what it would have said.

    ``reason``: what its server replied instead, in a line.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: the attacker's completion, the rewrite in it, and the defender's completion.

    ``attack`` is None where no model wrote the rewrite (vanilla seeds, fixed strategies). ``rewrite`` is the text that
    the defender reads; ``format_ok`` is the tag check of the attacker's completion. ``defence`` is None where the
    attack has no text: there was nothing to ask the defender, and the conversation ends. Where the defender reasons
    first (``game.defender_cot``), ``answer`` is the visible part of its completion and ``answer_format_ok`` the check
    of its tags; elsewhere both are None, and the whole completion is visible.
    """

    rewrite: str
    format_ok: bool
    attack: Completion | None
    defence: Completion | None
    answer: str | None = None
    answer_format_ok: bool | None = None

    @property
    def reply(self) -> str:
        """The part of the defender's completion that the judge and the attacker read."""
        if self.answer is not None:
            return self.answer
        return "" if self.defence is None else self.defence.text


class Ending(StrEnum):
    """Why a conversation ended: all its turns were played, the next prompt was longer than a model's context, the
    length limit cut the defender's reply before the last turn, or the length limit cut the attack before it had any
    text, as inside ``<think>``."""

    PLAYED = "played"
    NO_ROOM = "no_room"
    CUT_SHORT = "cut_short"
    NO_ATTACK = "no_attack"


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished conversation of at least one turn. ``group`` numbers the seed within the step's global batch,
    ``sample`` the episode within its group."""

    seed: Seed
    group: int
    sample: int
    turns: tuple[Turn, ...]
    ending: Ending = Ending.PLAYED

    def messages_of(self, role: Role) -> tuple[Completion, ...]:
        """The completions of ``role``'s model, turn by turn; none for a turn whose rewrite no model wrote, or that the
        defender was not asked."""
        completions = (turn.attack if role is Role.ATTACKER else turn.defence for turn in self.turns)
        return tuple(completion for completion in completions if completion is not None)

    @property
    def played(self) -> bool:
        """Whether the defender was asked anything. Otherwise there is nothing to judge: the attack had no text."""
        return any(turn.defence is not None for turn in self.turns)

    @property
    def format_ok(self) -> bool:
        """Whether all of the attacker's completions are well-formed."""
        return all(turn.format_ok for turn in self.turns)

    @property
    def answer_format_ok(self) -> bool | None:
        """Whether all of the defender's completions are well-formed; None where it does not reason first."""
        checks = [turn.answer_format_ok for turn in self.turns if turn.defence is not None]
        return None if None in checks or not checks else all(checks)

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The defender's prompts and replies in order: the messages that the judge reads."""
        return tuple(
            message
            for turn in self.turns
            if turn.defence is not None
            for message in (Message("user", turn.rewrite), Message("assistant", turn.reply))
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one conversation. A field that was not requested is None, never a default.

    ``disagreed`` names the fields on which the guards behind an ensemble differ. ``error``: why there is no verdict.
    """

    id: str
    prompt_safety: Safety | None = None
    response_safety: Safety | None = None
    refusal: Answer | None = None
    helpful: Answer | None = None
    intent_preserved: Answer | None = None
    categories: tuple[str, ...] = ()
    disagreed: tuple[str, ...] = ()
    guard: str = ""
    error: str | None = None


VERDICT_FIELDS: dict[str, type[Safety] | type[Answer]] = {
    name: Safety if Safety in get_args(kind) else Answer
    for name, kind in get_type_hints(Verdict).items()
    if {Safety, Answer}.intersection(get_args(kind))
}
"""The fields of a verdict that a judge is asked for, and the type of each."""
