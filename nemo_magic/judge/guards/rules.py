"""The sandbox's guard: its world's rules decode any rewrite exactly, so the facts are known without error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.guards.base import ComputedGuard, Opinion
from nemo_magic.judge.protocol import JudgeItem
from nemo_magic.sandbox.rules import judge_conversation
from nemo_magic.sandbox.world import SandboxConfig, World


class RulesGuard(ComputedGuard):
    """Judges conversations of the sandbox world written at ``world`` (JSON, the keys of SandboxConfig).

    The revision names that world: two runs with equal revisions were judged by equal rules. Without a seed it cannot
    tell whether intent was preserved; where the last message is no response, what is asked about it is unknown.
    """

    name = "rules"

    def __init__(self, world: str) -> None:
        text = Path(world).read_text()
        self._world = World.from_config(SandboxConfig(**json.loads(text)))
        self.revision = hashlib.sha256(text.encode()).hexdigest()[:8]

    def opinion(self, item: JudgeItem) -> Opinion:
        seed = item.seed.text if item.seed else item.prompt
        facts = judge_conversation(self._world, seed, item.prompt, item.response or "")
        answered = item.response is not None
        return Opinion(
            prompt_safety=_safety(facts.prompt_harmful),
            response_safety=_safety(facts.response_harmful) if answered else None,
            refusal=_answer(facts.refused) if answered else None,
            helpful=_answer(facts.useful) if answered else None,
            intent_preserved=_answer(facts.intent_preserved) if item.seed else None,
        )


def _safety(harmful: bool | None) -> Safety | None:
    if harmful is None:
        return None
    return Safety.UNSAFE if harmful else Safety.SAFE


def _answer(true: bool) -> Answer:
    return Answer.YES if true else Answer.NO
