"""A stage with nobody's server and nobody's model: roles that answer by a rule, a judge that reads answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from nemo_magic.actors.rank_group import SingleProcess
from nemo_magic.config.defence import SelfEvalConfig, SmoothLLMConfig
from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.defences import Defence, NoDefence, RunStats, SelfEval, SmoothLLM
from nemo_magic.evaluation.task_runner import Attacker, TaskRunner
from nemo_magic.game.episode import Completion, NoAnswer, Safety, Verdict
from nemo_magic.game.prompts import Chat, PromptConfig
from nemo_magic.judge.protocol import JudgeItem
from nemo_magic.rollout.cached import CachedPolicy
from nemo_magic.rollout.response_cache import ResponseCache

FIELDS = frozenset({"response_safety"})
PROMPTS = PromptConfig(attacker_user="{label}: {seed}", attacker_reply="it said: {reply}")


class Rule:
    """Says ``rule(chat, seed)``, or nothing where that is NoAnswer, where seed is None at temperature 0; cannot read a
    last message of more than ten words."""

    def __init__(self, rule: Callable[[Chat, int | None], str | NoAnswer], finished: bool = True) -> None:
        self.rule, self.chats, self.finished = rule, list[Chat](), finished

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool) -> list[Completion | NoAnswer | None]:
        self.chats += chats
        said: list[Completion | NoAnswer | None] = []
        for chat, seed in zip(chats, seeds, strict=True):
            readable = len(chat[-1].content.split()) <= 10
            text = self.rule(chat, None if greedy else seed)
            if readable and isinstance(text, str):
                said.append(Completion((), (), (), text, self.finished))
            else:
                said.append(text if readable and isinstance(text, NoAnswer) else None)
        return said

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        return " ".join(text.split(" ")[:6])


def echo(tagged: bool = False) -> Rule:
    """Says the last message in capitals, in tags where ``tagged``."""
    return Rule(
        lambda chat, _: (
            f"<think>hm</think><answer>{chat[-1].content.upper()}</answer>" if tagged else chat[-1].content.upper()
        )
    )


class Judge:
    """Unsafe are answers with ``bad`` in them, whatever the case; an answer to ``LOST`` gets no verdict."""

    def __init__(self) -> None:
        self.items: list[JudgeItem] = []

    def score(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        self.items += items
        future: Future[list[Verdict]] = Future()
        future.set_result([self._verdict(item) for item in items])
        return future

    def _verdict(self, item: JudgeItem) -> Verdict:
        if "LOST" in item.prompt:
            return Verdict(item.id, response_safety=Safety.UNKNOWN, error="lost")
        unsafe = "bad" in (item.response or "").lower()
        return Verdict(item.id, response_safety=Safety.UNSAFE if unsafe else Safety.SAFE)


class Staged:
    """Everyone at one place, writing to ``folder``: started anew it goes on with what was said there."""

    def __init__(
        self, folder: Path, defender: Rule, attacker: Rule | None = None, judge: Any = None, cot: bool = False
    ) -> None:
        self.ranks, self.stats = SingleProcess(), RunStats()
        self.cache = ResponseCache(folder / "answers", 0)
        self.defender = CachedPolicy(self.ranks, defender, self.cache, "defender")
        self.attacker = attacker and CachedPolicy(self.ranks, attacker, self.cache, "attacker", {"temperature": 1.0})
        self.judge = CachedJudge(self.ranks, judge or Judge(), ResponseCache(folder / "verdicts", 0), "g@1")
        self.model = NoDefence(self.defender, PROMPTS, cot, self.stats)

    def smoothllm(self, **options: Any) -> SmoothLLM:
        return SmoothLLM(SmoothLLMConfig(**options), self.model, self.judge, self.ranks, FIELDS, seed=1)

    def self_eval(self, evaluator: Rule | None = None, **options: Any) -> SelfEval:
        voice = evaluator and CachedPolicy(self.ranks, evaluator, self.cache, "evaluator")
        return SelfEval(SelfEvalConfig(**options), self.model, voice or self.defender)

    def stage(self, defence: Defence | None = None, turns: int = 1, seed: int | None = None) -> TaskRunner:
        attacker = self.attacker and Attacker(self.attacker, turns, seed)
        return TaskRunner(self.ranks, defence or self.model, attacker, self.judge, PROMPTS, FIELDS, self.stats)
