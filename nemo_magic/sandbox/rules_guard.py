"""The sandbox's guard: its world's rules decode any rewrite exactly, so the facts are known without error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nemo_magic.game.episode import Answer, Message, Safety, Seed
from nemo_magic.judge.guards.base import PROBE, ComputedGuard, Opinion
from nemo_magic.judge.protocol import Ask, JudgeItem, make_item
from nemo_magic.sandbox.language import PLAIN, render
from nemo_magic.sandbox.rules import delivery, judge_conversation
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld


class RulesGuard(ComputedGuard):
    """Judges conversations of the sandbox world described in the file ``world`` (JSON, the keys of SandboxConfig).

    The revision is a digest of that world: equal revisions judge by equal rules. Without a seed it cannot
    tell whether intent was preserved; where the last message is no response, what is asked about one is unknown.
    Raises OSError if there is no such file, ValueError if it describes no world.
    """

    name = "rules"

    def __init__(self, world: str) -> None:
        settings = json.loads(Path(world).read_text())
        try:
            self._world = SandboxWorld(SandboxConfig(**settings))
        except TypeError as error:
            raise ValueError(f"{world} describes no sandbox world: {error}") from error
        described = {key: value for key, value in settings.items() if key != "folder"}
        self.revision = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def probe(self) -> JudgeItem:
        """A plain request of the world and its delivery, with all fields asked."""
        item = self._world.items("train")[0]
        seed = Seed(PROBE, render(self._world, PLAIN, item), self._world.label(item))
        conversation = (Message("user", seed.text), Message("assistant", delivery(self._world, item)))
        return make_item(PROBE, conversation, ask=Ask, seed=seed)

    def opinion(self, item: JudgeItem) -> Opinion:
        """By the world's rules; without a seed the prompt counts as the seed."""
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
