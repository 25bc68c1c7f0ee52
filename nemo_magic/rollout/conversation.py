"""The one conversation loop: attacker and defender in turn, for training, the league and evaluations.

Who writes and who answers comes in as two functions over all open conversations, so that every turn is one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nemo_magic.game import tags
from nemo_magic.game.episode import Completion, Ending, NoAnswer, Seed, Turn
from nemo_magic.game.prompts import PromptConfig, attacker_messages
from nemo_magic.rollout.policy import Policy


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """A seed to be attacked: its number in the step's global batch, and which of its group's attacks this is."""

    seed: Seed
    group: int
    sample: int


@dataclass(frozen=True, slots=True)
class AttackPrompt:
    """What the defender is shown next. ``completion`` is None where no model wrote it."""

    spec: RolloutSpec
    rewrite: str
    format_ok: bool
    completion: Completion | None

    @property
    def is_cut_off(self) -> bool:
        """Whether the length limit cut the attack before it had any text, as inside ``<think>``: it asks nothing
        yet."""
        return not self.rewrite and self.completion is not None and not self.completion.finished


@dataclass(slots=True)
class Conversation:
    """A conversation in progress. ``prompt`` is what the defender is to answer next; None until it is written.

    ``unanswered``: a role gave no answer, and the conversation has no outcome.
    """

    spec: RolloutSpec
    prompt: AttackPrompt | None = None
    turns: list[Turn] = field(default_factory=list)
    ending: Ending = Ending.PLAYED
    unanswered: NoAnswer | None = None

    @property
    def defender_history(self) -> list[tuple[str, str]]:
        """The (prompt, reply) pairs so far, as the defender saw them."""
        return [(turn.rewrite, turn.reply) for turn in self.turns if turn.defence is not None]

    @property
    def attacker_history(self) -> list[tuple[str, str]]:
        """The (attack, reply) pairs so far, as the attacker knows them: its own messages whole."""
        return [("" if turn.attack is None else turn.attack.text, turn.reply) for turn in self.turns]


Attack = Callable[[Sequence[Conversation]], Sequence[AttackPrompt | NoAnswer | Ending]]
"""The next prompt of each conversation, or why it ends here."""

Answer = Callable[[Sequence[Conversation]], Sequence[Turn | NoAnswer | None]]
"""The turn that answers each conversation's prompt; None where the defender cannot read it."""


def converse(
    conversations: Sequence[Conversation],
    attack: Attack,
    answer: Answer,
    *,
    max_turns: int,
    opened: bool,
    cut_reply_ends: bool,
) -> None:
    """Play conversations for up to ``max_turns`` turns each; ``turns``, ``ending`` and ``unanswered`` of each hold the
    result.

    An attack that was cut off before it had any text is not shown: its turn has no defence, and the conversation ends
    there.

    Both functions are called once a turn on every rank, also without conversations: they may contain collectives.

    Args:
        max_turns: equal on all ranks.
        opened: the conversations come with their first prompt, so ``attack`` is not called in the first turn.
        cut_reply_ends: a reply that the length limit cut ends a conversation that has turns left (training: what
            follows half a sentence would be answered by nobody in particular). Otherwise it goes on (evaluation).
    """
    going = list(conversations)
    for turn in range(max_turns):
        if turn or not opened:
            for one, prompt in zip(going, attack(going), strict=True):
                if isinstance(prompt, NoAnswer):
                    one.unanswered = prompt
                elif isinstance(prompt, Ending):
                    one.ending = prompt
                else:
                    one.prompt = prompt
        going = [one for one in going if one.prompt is not None]
        for one in going:
            if one.prompt is not None and one.prompt.is_cut_off:
                one.turns.append(Turn("", one.prompt.format_ok, one.prompt.completion, None))
                one.prompt, one.ending = None, Ending.NO_ATTACK
        going = [one for one in going if one.prompt is not None]
        for one, played in zip(going, answer(going), strict=True):
            one.prompt = None
            if played is None:
                one.ending = Ending.NO_ROOM
                continue
            if isinstance(played, NoAnswer):
                one.unanswered = played
                continue
            one.turns.append(played)
            if cut_reply_ends and played.defence and not played.defence.finished and len(one.turns) < max_turns:
                one.ending = Ending.CUT_SHORT
        going = [one for one in going if one.ending is Ending.PLAYED and one.unanswered is None]


def write_attacks(
    policy: Policy,
    config: PromptConfig,
    conversations: Sequence[Conversation],
    seeds: Sequence[int],
    greedy: bool,
    max_turns: int,
    empty_answer_ok: bool = False,
) -> list[AttackPrompt | NoAnswer | Ending]:
    """The attacker's next message in every conversation; NO_ROOM where it cannot read on. ``seeds``: one a row;
    ``empty_answer_ok``: as ``tags.parse``."""
    chats = [attacker_messages(config, one.spec.seed, one.attacker_history, max_turns) for one in conversations]
    prompts: list[AttackPrompt | NoAnswer | Ending] = []
    for one, completion in zip(conversations, policy.generate(chats, seeds, greedy), strict=True):
        if completion is None:
            prompts.append(Ending.NO_ROOM)
        elif isinstance(completion, NoAnswer):
            prompts.append(completion)
        else:
            tagged = tags.parse(completion.text, empty_answer_ok)
            prompts.append(AttackPrompt(one.spec, tagged.visible, tagged.format_ok, completion))
    return prompts
