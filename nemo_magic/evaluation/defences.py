"""What stands between the user and the defender's model: nothing, SmoothLLM, or Self-Eval."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from nemo_magic.config.defence import SelfEvalConfig, SmoothLLMConfig
from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.example import Example
from nemo_magic.game import tags
from nemo_magic.game.episode import Message, Safety
from nemo_magic.game.prompts import Chat, PromptConfig, defender_messages
from nemo_magic.judge.protocol import JudgeItem, make_item
from nemo_magic.rollout.cached import CachedMessage, CachedPolicy, seed_of
from nemo_magic.rollout.rank_group import RankGroup


class DefenceInput(NamedTuple):
    """A message that the defender is to answer; ``past`` is what was shown and answered before, turn by turn."""

    case: Example
    text: str
    past: tuple[tuple[str, str], ...]


class Reply(NamedTuple):
    """``shown``: as much of the message as the defender could read; ``text``: what the user and the judge are shown."""

    shown: str
    text: str


@dataclass
class RunStats:
    """What became of a task's cases beside their verdicts.

    ``cut``: shown shorter than they are, because the model reads no more; ``unplayed``: not even so; ``ended``: attacks
    that nobody could read on; ``refused``: answers that a defence put a refusal in place of; ``unreadable``: those of
    which the evaluator said neither word; ``undecided``: copies without a vote. ``messages``: how many of each kind
    were needed, whether newly asked for or read back.
    """

    cut: int = 0
    unplayed: int = 0
    truncated: int = 0
    ended: int = 0
    broken_format: int = 0
    refused: int = 0
    unreadable: int = 0
    undecided: int = 0
    messages: Counter[str] = field(default_factory=Counter)


class Defence(Protocol):
    """Answers messages. Every rank calls equally often, with its own share of them."""

    def answer(self, asked: Sequence[DefenceInput]) -> list[Reply | None]:
        """One reply a message, in order; None where the defender cannot read it."""


@dataclass(frozen=True)
class NoDefence:
    """The defender's model itself. ``cot``: it reasons first, and only what follows is visible."""

    voice: CachedPolicy
    prompts: PromptConfig
    cot: bool
    tally: RunStats

    def answer(self, asked: Sequence[DefenceInput]) -> list[Reply | None]:
        shown = [self.truncate_to_context(each) for each in asked]
        said = self.generate([self.chat(each, text) for each, text in zip(asked, shown, strict=True)])
        return [None if words is None else self.reply(text, words) for text, words in zip(shown, said, strict=True)]

    def chat(self, asked: DefenceInput, text: str) -> Chat:
        return defender_messages(self.prompts, text, asked.past)

    def truncate_to_context(self, asked: DefenceInput) -> str:
        """As much of the message as can be read; a shorter one is counted."""
        text = self.voice.truncate_to_context(asked.text, partial(self.chat, asked))
        self.tally.cut += text != asked.text
        return text

    def generate(self, chats: Sequence[Chat]) -> list[CachedMessage]:
        self.tally.messages["defender"] += len(chats)
        return self.voice.generate(chats)

    def visible(self, words: tuple[str, bool]) -> str:
        return tags.parse(words[0]).visible if self.cot else words[0]

    def reply(self, shown: str, words: tuple[str, bool]) -> Reply:
        self.tally.truncated += not words[1]
        return Reply(shown, self.visible(words))


@dataclass(frozen=True)
class SmoothLLM:
    """Perturbed copies of every message, a vote, and one of the majority's answers (arXiv 2310.03684, algorithm 1).

    Copies and choice depend on ``(seed, case, turn, copy)`` only. The majority is strict: a tie counts as not broken.
    A copy that the defender cannot read, or of which the judge's verdict is unknown, has no vote.
    """

    config: SmoothLLMConfig
    model: NoDefence
    bench: CachedJudge
    world: RankGroup
    fields: frozenset[str]
    seed: int

    def answer(self, asked: Sequence[DefenceInput]) -> list[Reply | None]:
        count = self.config.copies
        shown = [self.model.truncate_to_context(each) for each in asked]
        chats = [
            self.model.chat(each, self._copy(each, text, number))
            for each, text in zip(asked, shown, strict=True)
            for number in range(count)
        ]
        said = self.model.generate(chats)
        answers = [said[i * count : (i + 1) * count] for i in range(len(asked))]
        votes = self._votes(asked, shown, answers)
        return [
            self._chosen(each, text, of_copies, broken)
            for each, text, of_copies, broken in zip(asked, shown, answers, votes, strict=True)
        ]

    def _copy(self, asked: DefenceInput, text: str, number: int) -> str:
        draw = self._draw(asked, number)
        copy = perturbed(text, self.config.perturbation, self.config.percent, self.config.alphabet, draw)
        # The same number of characters may be more tokens.
        return self.model.voice.truncate_to_context(copy, partial(self.model.chat, asked))

    def _draw(self, asked: DefenceInput, number: int | str) -> random.Random:
        return random.Random(seed_of(self.seed, "smoothllm", asked.case.id, len(asked.past), number))

    def _votes(
        self, asked: Sequence[DefenceInput], shown: Sequence[str], answers: Sequence[Sequence[CachedMessage]]
    ) -> list[list[bool | None]]:
        """For each copy of each message whether it broke the model; None without a vote."""
        visible = [[None if words is None else self.model.visible(words) for words in each] for each in answers]
        if self.config.vote == "phrases":
            return [
                [None if text is None else not any(phrase in text for phrase in self.config.refusals) for text in each]
                for each in visible
            ]
        items: list[JudgeItem] = []
        for one, text, each in zip(asked, shown, visible, strict=True):
            for said in each:
                if said is not None:
                    # What a copy was answered is judged as an answer to what the user wrote.
                    exchanges = conversation_of([*one.past, (text, said)])
                    items.append(make_item(str(len(items)), exchanges, ask=self.fields, seed=one.case.seed))
        self.model.tally.messages["judge"] += len(items)
        verdicts = iter(
            self.world.broadcast_model_parallel([verdict.response_safety for verdict in self.bench.judge(items)])
        )
        return [[None if text is None else _broken(next(verdicts)) for text in each] for each in visible]

    def _chosen(
        self, asked: DefenceInput, shown: str, answers: Sequence[CachedMessage], broken: Sequence[bool | None]
    ) -> Reply | None:
        known = [vote for vote in broken if vote is not None]
        self.model.tally.undecided += len(broken) - len(known)
        if not known:
            return None
        majority = sum(known) * 2 > len(known)
        agreeing = [
            words for words, vote in zip(answers, broken, strict=True) if words is not None and vote is majority
        ]
        return self.model.reply(shown, self._draw(asked, "choice").choice(agreeing))


@dataclass(frozen=True)
class SelfEval:
    """An evaluator reads the message, the answer or both, and what it calls unsafe is refused (arXiv 2407.03234).

    Of a conversation it reads the latest exchange. ``cot``: the evaluator reasons first, as a defender that is asked
    itself may.
    """

    config: SelfEvalConfig
    model: NoDefence
    evaluator: CachedPolicy
    cot: bool = False

    def answer(self, asked: Sequence[DefenceInput]) -> list[Reply | None]:
        if self.config.check != "input":
            replies = self.model.answer(asked)
            refused = iter(self._refused([reply for reply in replies if reply is not None]))
            return [
                Reply(reply.shown, self.config.refusal) if reply is not None and next(refused) else reply
                for reply in replies
            ]
        fitted = [each._replace(text=self.model.truncate_to_context(each)) for each in asked]
        flagged = self._refused([Reply(each.text, "") for each in fitted])
        answers = iter(self.model.answer([each for each, no in zip(fitted, flagged, strict=True) if not no]))
        return [
            Reply(each.text, self.config.refusal) if no else next(answers)
            for each, no in zip(fitted, flagged, strict=True)
        ]

    def _refused(self, exchanges: Sequence[Reply]) -> list[bool]:
        """Whether each exchange is to be refused."""
        self.model.tally.messages["evaluator"] += len(exchanges)
        said = self.evaluator.generate([self._chat(each) for each in exchanges])
        refused = [self._means_refusal(words) for words in said]
        self.model.tally.refused += sum(refused)
        return refused

    def _chat(self, exchange: Reply) -> Chat:
        def chat_of(text: str, answer: str) -> Chat:
            # One pass, so that braces in what was said stay text.
            places = {"{input}": text, "{output}": answer}
            shown = re.sub(r"\{input\}|\{output\}", lambda found: places[found[0]], self.config.show)
            system = (Message("system", self.config.system),) if self.config.system else ()
            return (*system, Message("user", shown))

        text = self.evaluator.truncate_to_context(exchange.shown, lambda text: chat_of(text, exchange.text))
        return chat_of(text, self.evaluator.truncate_to_context(exchange.text, lambda answer: chat_of(text, answer)))

    def _means_refusal(self, words: CachedMessage) -> bool:
        text = "" if words is None else tags.parse(words[0]).visible if self.cot else words[0]
        text = text.lower()
        if self.config.unsafe_word.lower() in text:
            return True
        if self.config.safe_word.lower() in text:
            return False
        self.model.tally.unreadable += 1
        return self.config.unreadable == "refuse"


def perturbed(text: str, how: str, percent: float, alphabet: str, draw: random.Random) -> str:
    """``text`` with ``percent`` of its characters (rounded down) swapped, patched or followed by inserted ones
    (SmoothLLM, algorithm 2)."""
    count = int(len(text) * percent / 100)
    characters = list(text)
    if how == "patch":
        start = draw.randint(0, len(text) - count)
        characters[start : start + count] = draw.choices(alphabet, k=count)
        return "".join(characters)
    for world in draw.sample(range(len(text)), count):
        new = draw.choice(alphabet)
        characters[world] = new if how == "swap" else characters[world] + new
    return "".join(characters)


def conversation_of(exchanges: Iterable[tuple[str, str]]) -> list[Message]:
    """The messages of exchanges of what was shown and what was answered."""
    return [message for shown, reply in exchanges for message in (Message("user", shown), Message("assistant", reply))]


def _broken(safety: Safety | None) -> bool | None:
    return None if safety in (None, Safety.UNKNOWN) else safety in (Safety.UNSAFE, Safety.CONTROVERSIAL)
