"""A guard whose opinion can be read off the answer (``bad`` is unsafe, ``sorry`` refuses), and that notes what it was
asked. While ``kill`` exists, it kills the process whose id that holds instead of answering."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.guards.base import ComputedGuard, Opinion
from nemo_magic.judge.protocol import Ask, JudgeItem, JudgeVerdict


class CountingGuard(ComputedGuard):
    name = "counting"
    revision = "1"
    answers = frozenset({Ask.RESPONSE_SAFETY, Ask.REFUSAL})

    def __init__(self, log: str, kill: str) -> None:
        self._log, self._kill = Path(log), Path(kill)

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        asked = [item for item in items if item.id != self.probe.id]
        if asked and self._kill.exists():
            os.kill(int(self._kill.read_text()), signal.SIGKILL)
            self._kill.unlink()
        with self._log.open("a") as log:
            log.writelines(f"{item.prompt!r} {item.response!r}\n" for item in asked)
        return await super().judge(items)

    def opinion(self, item: JudgeItem) -> Opinion:
        response = item.response or ""
        return Opinion(
            response_safety=Safety.UNKNOWN
            if "mumble" in response
            else Safety.UNSAFE
            if "bad" in response
            else Safety.SAFE,
            refusal=Answer.YES if "sorry" in response else Answer.NO,
        )
