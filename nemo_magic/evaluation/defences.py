"""What stands between the user and the defender's model: nothing, SmoothLLM, or Self-Eval."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from nemo_magic.actors.rank_group import RankGroup
from nemo_magic.config.defence import SelfEvalConfig, SmoothLLMConfig
from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.example import Example
from nemo_magic.game import tags
from nemo_magic.game.episode import Completion, Message, NoAnswer, Safety
from nemo_magic.game.prompts import Chat, PromptConfig, defender_messages
from nemo_magic.judge.protocol import JudgeItem, make_item
from nemo_magic.rollout.cached import CachedPolicy
from nemo_magic.rollout.engine import row_seed


class DefenceInput(NamedTuple):
    """A message that the defender is to answer; ``past`` holds the (message, reply) pairs before it."""

    example: Example
    text: str
    past: tuple[tuple[str, str], ...]


class Reply(NamedTuple):
    """``prompt``: as much of the message as the defender could read; ``text``: what the user and the judge see of its
    answer."""

    prompt: str
    text: str


@dataclass
class RunStats:
    """Counts of a task's run beside its verdicts.

    ``cut``: messages shortened to what the defender can read; ``unplayed``: examples that it could not read even so;
    ``ended``: attacks that ended early because a role could read no further, or the attacker wrote no text;
    ``refused``: answers that a defence replaced by a refusal; ``unreadable``: evaluator outputs with neither word;
    ``undecided``: copies without a vote. ``unanswered``: examples in which a role gave no answer, by reason.
    ``messages``: how many of each kind were needed, newly generated or read back.
    """

    cut: int = 0
    unplayed: int = 0
    truncated: int = 0
    ended: int = 0
    broken_format: int = 0
    refused: int = 0
    unreadable: int = 0
    undecided: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)


class Defence(Protocol):
    """Answers messages. Every rank calls equally often, with its own share of them."""

    def answer(self, inputs: Sequence[DefenceInput]) -> list[Reply | NoAnswer | None]:
        """One reply a message, in order; None where the defender cannot read it, NoAnswer where it gave none that a
        user could see."""


@dataclass(frozen=True)
class NoDefence:
    """The defender's model itself. ``cot``: it reasons first, and only what follows is visible."""

    policy: CachedPolicy
    prompts: PromptConfig
    cot: bool
    stats: RunStats

    def answer(self, inputs: Sequence[DefenceInput]) -> list[Reply | NoAnswer | None]:
        """As ``Defence.answer``."""
        texts = [self.truncate_to_context(each) for each in inputs]
        completions = self.generate([self.chat(each, text) for each, text in zip(inputs, texts, strict=True)])
        return [
            self.reply(text, completion) if isinstance(completion, Completion) else completion
            for text, completion in zip(texts, completions, strict=True)
        ]

    def chat(self, message: DefenceInput, text: str) -> Chat:
        """The chat that asks for an answer to ``text`` in the message's place."""
        return defender_messages(self.prompts, text, message.past)

    def truncate_to_context(self, message: DefenceInput) -> str:
        """As much of the message as can be read; a shortened one is counted."""
        text = self.policy.truncate_to_context(message.text, partial(self.chat, message))
        self.stats.cut += text != message.text
        return text

    def generate(self, chats: Sequence[Chat]) -> list[Completion | NoAnswer | None]:
        """The defender's completions at temperature 0, counted. An empty one is no answer: nobody refused anything."""
        self.stats.messages["defender"] += len(chats)
        return [
            completion
            if not isinstance(completion, Completion) or self.visible(completion).strip()
            else NoAnswer("reasoning and no answer" if completion.text.strip() else "the text is empty")
            for completion in self.policy.generate(chats)
        ]

    def visible(self, completion: Completion) -> str:
        """What the user sees of a completion."""
        return tags.parse(completion.text).visible if self.cot else completion.text

    def reply(self, prompt: str, completion: Completion) -> Reply:
        """The reply that a completion is; a truncated one is counted."""
        self.stats.truncated += not completion.finished
        return Reply(prompt, self.visible(completion))


@dataclass(frozen=True)
class SmoothLLM:
    """Perturbed copies of every message, a vote, and one of the majority's answers (arXiv 2310.03684, algorithm 1).

    Copies and choice depend on ``(seed, example, turn, copy)`` only. The majority is strict: a tie counts as not
    broken. A copy that the defender cannot read or gives no answer to, or of which the judge's verdict is unknown, has
    no vote.
    """

    config: SmoothLLMConfig
    model: NoDefence
    judge: CachedJudge
    ranks: RankGroup
    fields: frozenset[str]
    seed: int

    def answer(self, inputs: Sequence[DefenceInput]) -> list[Reply | NoAnswer | None]:
        """As ``Defence.answer``."""
        count = self.config.copies
        texts = [self.model.truncate_to_context(each) for each in inputs]
        chats = [
            self.model.chat(each, self._copy(each, text, number))
            for each, text in zip(inputs, texts, strict=True)
            for number in range(count)
        ]
        completions = self.model.generate(chats)
        answers = [completions[i * count : (i + 1) * count] for i in range(len(inputs))]
        votes = self._votes(inputs, texts, answers)
        return [
            self._choose(each, text, of_copies, broken)
            for each, text, of_copies, broken in zip(inputs, texts, answers, votes, strict=True)
        ]

    def _copy(self, message: DefenceInput, text: str, number: int) -> str:
        draw = self._random(message, number)
        copy = perturbed(text, self.config.perturbation, self.config.percent, self.config.alphabet, draw)
        # The same number of characters may be more tokens.
        return self.model.policy.truncate_to_context(copy, partial(self.model.chat, message))

    def _random(self, message: DefenceInput, number: int | str) -> random.Random:
        return random.Random(row_seed(self.seed, "smoothllm", message.example.id, len(message.past), number))

    def _votes(
        self,
        inputs: Sequence[DefenceInput],
        texts: Sequence[str],
        answers: Sequence[Sequence[Completion | NoAnswer | None]],
    ) -> list[list[bool | None]]:
        """For each copy of each message whether it broke the model; None without a vote."""
        visible = [
            [self.model.visible(one) if isinstance(one, Completion) else None for one in each] for each in answers
        ]
        if self.config.vote == "phrases":
            return [
                [None if text is None else not any(phrase in text for phrase in self.config.refusals) for text in each]
                for each in visible
            ]
        items: list[JudgeItem] = []
        for message, prompt, replies in zip(inputs, texts, visible, strict=True):
            for reply in replies:
                if reply is not None:
                    # The answer to a copy is judged as an answer to what the user wrote.
                    messages = conversation_of([*message.past, (prompt, reply)])
                    items.append(make_item(str(len(items)), messages, ask=self.fields, seed=message.example.seed))
        self.model.stats.messages["judge"] += len(items)
        safeties = [verdict.response_safety for verdict in self.judge.judge(items)]
        verdicts = iter(self.ranks.broadcast_model_parallel(safeties))
        return [[None if text is None else _broken(next(verdicts)) for text in each] for each in visible]

    def _choose(
        self,
        message: DefenceInput,
        prompt: str,
        answers: Sequence[Completion | NoAnswer | None],
        broken: Sequence[bool | None],
    ) -> Reply | NoAnswer | None:
        votes = [vote for vote in broken if vote is not None]
        self.model.stats.undecided += len(broken) - len(votes)
        if not votes:
            return next((one for one in answers if isinstance(one, NoAnswer)), None)
        majority = sum(votes) * 2 > len(votes)
        agreeing = [
            one for one, vote in zip(answers, broken, strict=True) if isinstance(one, Completion) and vote is majority
        ]
        return self.model.reply(prompt, self._random(message, "choice").choice(agreeing))


@dataclass(frozen=True)
class SelfEval:
    """An evaluator reads the message, the answer or both, and what it calls unsafe is refused (arXiv 2407.03234).

    Of a conversation it reads the latest exchange. ``cot``: the evaluator reasons first, as a defender that evaluates
    itself may.
    """

    config: SelfEvalConfig
    model: NoDefence
    evaluator: CachedPolicy
    cot: bool = False

    def answer(self, inputs: Sequence[DefenceInput]) -> list[Reply | NoAnswer | None]:
        """As ``Defence.answer``."""
        if self.config.check != "input":
            replies = self.model.answer(inputs)
            refused = iter(self._refused([reply for reply in replies if isinstance(reply, Reply)]))
            return [
                self._shown(reply.prompt, next(refused), reply) if isinstance(reply, Reply) else reply
                for reply in replies
            ]
        readable = [each._replace(text=self.model.truncate_to_context(each)) for each in inputs]
        flags = self._refused([Reply(each.text, "") for each in readable])
        answers = iter(self.model.answer([each for each, flag in zip(readable, flags, strict=True) if flag is False]))
        return [
            self._shown(each.text, flag, next(answers) if flag is False else None)
            for each, flag in zip(readable, flags, strict=True)
        ]

    def _shown(self, prompt: str, flag: bool | NoAnswer, answer: Reply | NoAnswer | None) -> Reply | NoAnswer | None:
        """What the user sees. Without the evaluator's answer it is not known."""
        if isinstance(flag, NoAnswer):
            return NoAnswer(f"the evaluator: {flag.reason}")
        return Reply(prompt, self.config.refusal) if flag else answer

    def _refused(self, exchanges: Sequence[Reply]) -> list[bool | NoAnswer]:
        """Whether each exchange is to be refused."""
        self.model.stats.messages["evaluator"] += len(exchanges)
        completions = self.evaluator.generate([self._chat(each) for each in exchanges])
        refused = [one if isinstance(one, NoAnswer) else self._means_refusal(one) for one in completions]
        self.model.stats.refused += sum(flag is True for flag in refused)
        return refused

    def _chat(self, exchange: Reply) -> Chat:
        def chat_of(prompt: str, answer: str) -> Chat:
            # One pass, so that braces in the texts stay text.
            slots = {"{input}": prompt, "{output}": answer}
            text = re.sub(r"\{input\}|\{output\}", lambda match: slots[match[0]], self.config.show)
            system = (Message("system", self.config.system),) if self.config.system else ()
            return (*system, Message("user", text))

        prompt = self.evaluator.truncate_to_context(exchange.prompt, lambda prompt: chat_of(prompt, exchange.text))
        answer = self.evaluator.truncate_to_context(exchange.text, lambda answer: chat_of(prompt, answer))
        return chat_of(prompt, answer)

    def _means_refusal(self, completion: Completion | None) -> bool:
        text = "" if completion is None else completion.text
        text = (tags.parse(text).visible if self.cot else text).lower()
        if self.config.unsafe_word.lower() in text:
            return True
        if self.config.safe_word.lower() in text:
            return False
        self.model.stats.unreadable += 1
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
    for i in draw.sample(range(len(text)), count):
        new = draw.choice(alphabet)
        characters[i] = new if how == "swap" else characters[i] + new
    return "".join(characters)


def conversation_of(exchanges: Iterable[tuple[str, str]]) -> list[Message]:
    """The messages of (prompt, reply) pairs."""
    return [
        message for prompt, reply in exchanges for message in (Message("user", prompt), Message("assistant", reply))
    ]


def _broken(safety: Safety | None) -> bool | None:
    return None if safety in (None, Safety.UNKNOWN) else safety in (Safety.UNSAFE, Safety.CONTROVERSIAL)
