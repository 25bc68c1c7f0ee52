"""Plays and judges a batch of a task's examples: what is in the caches is read back, the rest is asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_magic.actors.rank_group import RankGroup
from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.defences import Defence, DefenceInput, RunStats, conversation_of
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.transcripts import Transcript
from nemo_magic.game.episode import Completion, Ending, Label, NoAnswer, Seed, Turn, Verdict
from nemo_magic.game.prompts import PromptConfig
from nemo_magic.judge.protocol import make_item
from nemo_magic.rollout.cached import CachedPolicy
from nemo_magic.rollout.conversation import AttackPrompt, Conversation, RolloutSpec, converse, write_attacks
from nemo_magic.rollout.engine import row_seed


@dataclass(frozen=True)
class Attacker:
    """Writes what the defender is asked, for ``turns`` turns; it sees the defender's earlier replies.

    ``seed``: messages are sampled, and depend on it, the example and the turn; None: they are those of temperature 0.
    """

    policy: CachedPolicy
    turns: int = 1
    seed: int | None = None


@dataclass(frozen=True)
class TaskRunner:
    """Plays the examples of one task.

    ``defence`` answers; None: the examples' own answers are judged. ``attacker`` writes; None: the examples' own turns
    are asked. ``transcript``: where conversations are written, on source ranks.
    """

    ranks: RankGroup
    defence: Defence | None
    attacker: Attacker | None
    judge: CachedJudge
    prompts: PromptConfig
    fields: frozenset[str]
    stats: RunStats
    transcript: Transcript | None = None

    def play(self, examples: Sequence[Example]) -> dict[str, Verdict]:
        """Example id → verdict; examples that could not be played are missing. Empty on ranks that are no sources.

        An example in which a role gave no answer has an unknown verdict, whose error says why.
        """
        histories = self._read(examples) if self.defence is None else self._converse(examples, self.defence)
        unanswered = [
            (example, history)
            for example, history in zip(examples, histories, strict=True)
            if isinstance(history, NoAnswer)
        ]
        played = [
            (example, history)
            for example, history in zip(examples, histories, strict=True)
            if history and not isinstance(history, NoAnswer)
        ]
        self.stats.unplayed += len(examples) - len(played) - len(unanswered)
        self.stats.unanswered.update(each.reason for _, each in unanswered)
        self.stats.messages["judge"] += len(played)
        items = [
            make_item(str(n), conversation_of(_as_judged(example, history)), ask=self.fields, seed=example.seed)
            for n, (example, history) in enumerate(played)
        ]
        verdicts = {}
        if self.ranks.is_source:
            for example, why in unanswered:
                verdicts[example.id] = Verdict(example.id, error=f"no answer: {why.reason}")
                if self.transcript is not None:
                    self.transcript.add(example, (), verdicts[example.id])
        for verdict in self.judge.judge(items):
            example, history = played[int(verdict.id)]
            verdicts[example.id] = verdict
            if self.transcript is not None:
                self.transcript.add(example, history, verdict)
        return verdicts

    def _read(self, examples: Sequence[Example]) -> Sequence[list[tuple[str, str]] | NoAnswer]:
        """The (prompt, reply) pairs that examples with answers consist of."""
        return [list(zip(example.turns, example.replies, strict=True)) for example in examples]

    def _converse(self, examples: Sequence[Example], defence: Defence) -> Sequence[list[tuple[str, str]] | NoAnswer]:
        """The (prompt, reply) pairs of each example's conversation; none where it could not be played, NoAnswer where
        a role gave none in any turn, or the attacker no text in the first.

        An attack ends where a role can read no further or the attacker writes no text, and is judged as it stands. A
        plan of several turns that is not played to its end is no such plan.
        """
        # Other ranks may have longer conversations, and what ranks do together they do equally often.
        longest = max(self.ranks.all_gather(max((len(example.turns) for example in examples), default=0)))
        attacker, turns = self.attacker, longest if self.attacker is None else self.attacker.turns

        def attack(going: Sequence[Conversation]) -> Sequence[AttackPrompt | NoAnswer | Ending]:
            if attacker is None:
                return [_next_turn(one, examples[one.spec.group]) for one in going]
            self.stats.messages["attacker"] += len(going)
            seeds = [row_seed(attacker.seed, "attack", examples[one.spec.group].id, len(one.turns)) for one in going]
            prompts = write_attacks(
                attacker.policy, self.prompts, going, seeds, greedy=attacker.seed is None, max_turns=turns
            )
            self.stats.broken_format += sum(isinstance(one, AttackPrompt) and not one.format_ok for one in prompts)
            return prompts

        def answer(going: Sequence[Conversation]) -> list[Turn | NoAnswer | None]:
            inputs = [
                DefenceInput(examples[one.spec.group], prompt.rewrite, tuple(one.defender_history))
                for one in going
                if (prompt := one.prompt) is not None
            ]
            return [
                reply
                if isinstance(reply, NoAnswer)
                else None
                if reply is None or one.prompt is None
                else Turn(
                    reply.prompt,
                    one.prompt.format_ok,
                    one.prompt.completion,
                    Completion((), (), (), reply.text, finished=True),
                )
                for one, reply in zip(going, defence.answer(inputs), strict=True)
            ]

        conversations = [
            Conversation(RolloutSpec(Seed(example.id, example.turns[-1], example.label or Label.HARMFUL), number, 0))
            for number, example in enumerate(examples)
        ]
        converse(conversations, attack, answer, max_turns=turns, opened=False, cut_reply_ends=False)
        cut_off = [one.ending in (Ending.NO_ROOM, Ending.NO_ATTACK) for one in conversations]
        if attacker is not None:
            for one in conversations:
                if one.ending is Ending.NO_ATTACK and not one.defender_history:
                    one.unanswered = NoAnswer(_NO_TEXT)
            self.stats.ended += sum(
                cut and bool(one.defender_history) for cut, one in zip(cut_off, conversations, strict=True)
            )
            return [one.unanswered or one.defender_history for one in conversations]
        return [
            one.unanswered or ([] if cut else one.defender_history)
            for cut, one in zip(cut_off, conversations, strict=True)
        ]


_NO_TEXT = "the attack was cut off before it had any text"


def _next_turn(one: Conversation, example: Example) -> AttackPrompt | Ending:
    """The example's own next message; the conversation has been played where there is none."""
    if len(one.turns) == len(example.turns):
        return Ending.PLAYED
    return AttackPrompt(one.spec, example.turns[len(one.turns)], True, None)


def _as_judged(example: Example, history: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (prompt, reply) pairs that the judge is shown."""
    *before, (prompt, reply) = history
    return [*before, (example.judged_as or prompt, reply)]
