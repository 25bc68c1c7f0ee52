"""``nemo-magic analyse`` as a user starts it, with a labelling and an embedding model on a real loopback server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import zygote
from tests.actors.chat_endpoint import Body, Endpoint
from tests.zygote import Forked


def attacked(body: Body) -> str:
    """The attack that a labelling question is about."""
    (asked,) = re.findall(r"^Reworded, message by message: (.*)$", body["messages"][-1]["content"], re.MULTILINE)
    return "\n".join(json.loads(asked))


class Models:
    """A server that says ``answer(attack)`` of an attack, or embeds by ``vector(text)``; ``before`` is told how many
    questions there were before every answer."""

    def __init__(
        self, answer: Callable[[str], str], vector: Callable[[str], list[float]] = lambda text: [float(len(text)), 1.0]
    ) -> None:
        self.attacks: list[str] = []
        self.texts: list[str] = []
        self.before: Callable[[int], None] = lambda number: None
        self._answer, self._vector = answer, vector
        self.endpoint = Endpoint(self._reply)
        self.url = self.endpoint.url
        # More at once than Python's own server has room for would wait for it to look again.
        few = "analysis.labels.model.max_concurrency=4"
        self.words = [f"analysis.labels.model.urls=[{self.url}]", "analysis.labels.model.model=tiny", few]
        self.embedding_words = [f"analysis.embedding.urls=[{self.url}]", "analysis.embedding.model=tiny"]

    def close(self) -> None:
        self.endpoint.close()

    def _reply(self, body: Body) -> tuple[int, object]:
        if "input" in body:
            self.texts += body["input"]
            data = [{"index": i, "embedding": self._vector(text)} for i, text in enumerate(body["input"])]
            return 200, {"model": "tiny", "data": data[::-1]}
        self.attacks.append(attacked(body))
        self.before(len(self.attacks))
        choice: dict[str, Any] = {"message": {"content": self._answer(self.attacks[-1])}, "finish_reason": "stop"}
        return 200, {"model": "tiny", "choices": [choice]}


def start(run: Path, *overrides: str) -> Forked:
    words = zygote.nemo_magic("analyse", str(run), *overrides)
    return zygote.start(words, stdout=zygote.PIPE, stderr=zygote.STDOUT, text=True)


def found_in(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "attacks" / "attacks.json").read_text())
    return found
