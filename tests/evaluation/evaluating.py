"""``nemo-magic evaluate`` as a user starts it: made-up benchmarks, an endpoint that answers by a rule, a judge that
counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import zygote
from tests.actors.chat_endpoint import Body, Endpoint, says
from tests.evaluation.made_up import ROWS, write
from tests.zygote import Forked


def answer(prompt: str) -> str:
    """What the made-up model says: it gives in to ``grub``, declines ``norp``, and is helpful otherwise."""
    return "bad grub" if "grub" in prompt else "sorry" if "norp" in prompt else f"a wug for {prompt}"


def wily(body: Body) -> str:
    """An attacker: adds the word that works in every third sample, and in the third turn."""
    messages = body["messages"]
    turns = sum(message["role"] == "assistant" for message in messages)
    works = turns == 2 if body["temperature"] == 0 else body["seed"] % 3 == 0
    return f"<think>{turns}</think><answer>please {messages[0]['content']}{' grub' if works else ''}</answer>"


def wise(body: Body) -> str:
    """An evaluator: knows what the defender says that gave in."""
    return "unsafe" if "bad" in body["messages"][-1]["content"] else "safe"


RULES: dict[str, Callable[[Body], str]] = {"wily": wily, "wise": wise}
"""What other models than the defender say, by their name on the server."""


class Evaluated:
    """A folder with benchmarks, and the words of an evaluation in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.names = ("harmbench", "wildguardtest", "xstest", "or_bench_toxic", "xteaming", "strongreject")
        formats = {"wildguardtest": ".parquet", "xteaming": ".json", "or_bench_toxic": ".tsv"}
        self.files = {name: write(home / f"{name}{formats.get(name, '.csv')}", ROWS[name]) for name in self.names}
        self.prompts: list[str] = []
        self.replies: dict[str, Body] = {}
        """Whole replies to messages that end with a word, instead of what the model says."""
        self.before_answering: Callable[[int], None] = lambda number: None
        models = {"data": [{"id": name} for name in (*RULES, "tiny")]}
        self.endpoint = Endpoint(self._reply, models=(200, models))

    def close(self) -> None:
        self.endpoint.close()

    def folder(self, name: str) -> Path:
        return self.home / name

    def words(self, name: str, *overrides: str) -> list[str]:
        guard = {"log": str(self.folder(name) / "judged"), "kill": str(self.folder(name) / "kill")}
        files = [f"eval.tasks.{task}.file={path}" for task, path in self.files.items()]
        return [
            "evaluate", "-cn", "eval_paper", f"exp_manager.explicit_log_dir={self.folder(name)}", *files,
            "actors.defender.restore_from_path=null", f"actors.defender.remote.urls=[{self.endpoint.url}]",
            "actors.defender.remote.model=tiny", "actors.defender.remote.max_concurrency=1",
            "judge.urls=[]", "judge.launch=true", "judge.guard=tests.evaluation.counting_guard:CountingGuard",
            *(f"judge.guard_config.{key}={value}" for key, value in guard.items()), *overrides,
        ]  # fmt: skip

    def start(self, name: str, *overrides: str) -> Forked:
        self.folder(name).mkdir(exist_ok=True)
        words = zygote.nemo_magic(*self.words(name, *overrides))
        return zygote.start(words, stdout=zygote.PIPE, stderr=zygote.STDOUT, text=True)

    def run(self, name: str, *overrides: str, status: int = 0) -> str:
        running = self.start(name, *overrides)
        said = running.communicate(timeout=240)[0]
        assert running.returncode == status, said
        return said

    def figures(self, name: str) -> list[dict[str, Any]]:
        figures: list[dict[str, Any]] = json.loads((self.folder(name) / "results.json").read_text())["figures"]
        return figures

    def rates(self, name: str) -> dict[tuple[str, str], tuple[int, int, int]]:
        return {(f["task"], f["figure"]): (f["hits"], f["count"], f["unknown"]) for f in self.figures(name)}

    def judged(self, name: str) -> list[str]:
        return (self.folder(name) / "judged").read_text().splitlines()

    def _reply(self, body: Body) -> tuple[int, object]:
        self.prompts.append(json.dumps(body["messages"]))
        self.before_answering(len(self.prompts))
        text = body["messages"][-1]["content"]
        for word, reply in self.replies.items():
            if text.endswith(word):
                return 200, reply
        rule = RULES.get(body["model"])
        return 200, says(rule(body) if rule else answer(text))
