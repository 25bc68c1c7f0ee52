"""The nouns of the game: seeds, completions, turns, episodes and verdicts.

Plain immutable values. Nothing here knows tensors, models or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args, get_type_hints

from nemo_magic.backports import StrEnum


class Role(StrEnum):
    """Who a model plays: the attacker rewrites seeds, the defender answers them."""

    ATTACKER = "attacker"
    DEFENDER = "defender"

    @property
    def opponent(self) -> Role:
        return Role.DEFENDER if self is Role.ATTACKER else Role.ATTACKER


class Label(StrEnum):
    """What a seed query is, before anyone rewrote it."""

    HARMFUL = "harmful"
    BENIGN = "benign"


class Safety(StrEnum):
    """A guard's opinion of a prompt or a response."""

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
    """What a model sampled for one prompt.

    ``response_ids`` are the sampled ids themselves, the end token included when one was sampled; they are what
    is trained on. ``logprobs`` (one per response id, nats, at the sampling temperature) are the generator's own.
    ``text`` is the decoded response without end token or stop string. ``finished`` is False when the length
    limit cut the response.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the attacker wrote, what of it the defender saw, what the defender said.

    ``attack`` is None where no model wrote the rewrite (vanilla seeds, fixed strategies). ``rewrite`` is the
    visible text the defender was shown; ``format_ok`` is the tag check of the attacker's completion. Where the defender
    reasons first (``game.defender_cot``), ``answer`` is the visible part of what it said and ``answer_format_ok`` the
    check of its tags; elsewhere both are None, and all it said is visible.
    """

    rewrite: str
    format_ok: bool
    attack: Completion | None
    defence: Completion
    answer: str | None = None
    answer_format_ok: bool | None = None

    @property
    def reply(self) -> str:
        """What the judge and the attacker are shown of the defender's completion."""
        return self.defence.text if self.answer is None else self.answer


class Ending(StrEnum):
    """Why a conversation ended: all its turns were played, the next one was longer than a model can read, or the
    defender's reply was cut by the length limit before the last turn."""

    PLAYED = "played"
    NO_ROOM = "no_room"
    CUT_SHORT = "cut_short"


@dataclass(frozen=True, slots=True)
class Episode:
    """A played game of one turn at least. ``group`` numbers the seed within the step's global batch; ``sample`` within
    the group."""

    seed: Seed
    group: int
    sample: int
    turns: tuple[Turn, ...]
    ending: Ending = Ending.PLAYED

    def messages_of(self, role: Role) -> tuple[Completion, ...]:
        """What ``role``'s model said, turn by turn; nothing where no model wrote the rewrite."""
        said = (turn.attack if role is Role.ATTACKER else turn.defence for turn in self.turns)
        return tuple(completion for completion in said if completion is not None)

    @property
    def format_ok(self) -> bool:
        """Whether every one of the attacker's messages was well-formed."""
        return all(turn.format_ok for turn in self.turns)

    @property
    def answer_format_ok(self) -> bool | None:
        """Whether every one of the defender's messages was; None where it does not reason first."""
        checked = [turn.answer_format_ok for turn in self.turns]
        return None if None in checked else all(checked)

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What the defender saw and said, last turn last: what the judge is shown."""
        return tuple(
            message
            for turn in self.turns
            for message in (Message("user", turn.rewrite), Message("assistant", turn.reply))
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's opinion of one conversation. A field that was not asked for is None, never a default.

    ``disagreed`` names the fields on which the guards behind an ensemble differ.
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
