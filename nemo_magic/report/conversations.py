"""A sample of a run's conversations, by a stated rule, with the outcome of each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from nemo_magic.report.records import SAMPLES_DIR, whole_lines
from nemo_magic.sandbox.language import parse
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld

T = TypeVar("T")

MAX_TEXT = 4000
"""Characters of one message that a page holds; the file has the rest."""
NO_REQUEST = "no request of the sandbox"
NO_ATTACK = "the attack was cut off before it had any text, and not played"


@dataclass(frozen=True)
class ConversationSample:
    """``rows``: the conversations of ``steps`` steps, of the ``files`` steps that the run saved."""

    rows: list[dict[str, Any]]
    steps: int
    files: int

    @property
    def rule(self) -> str:
        """Which conversations these are, in words."""
        if self.files == 0:
            return "The run saved no conversation (exp_manager.num_logged_samples)."
        if self.steps == self.files:
            return f"All {len(self.rows):,} conversations that the run saved, of {self.files:,} steps."
        return (
            f"{len(self.rows):,} conversations: all that were saved at {self.steps:,} evenly spaced steps, the first "
            f"and the last included, of {self.files:,} steps with conversations."
        )


def sample_conversations(run_dir: Path, max_rows: int, max_bytes: int) -> ConversationSample:
    """Conversations of evenly spaced steps, about ``max_rows`` and ``max_bytes`` of them, as a page shows them."""
    whole = read_conversations(run_dir, max_rows, max_bytes)
    return replace(whole, rows=[_row(row) for row in whole.rows])


def read_conversations(run_dir: Path, max_rows: int, max_bytes: float = math.inf) -> ConversationSample:
    """The same, whole, as the run saved them."""
    names = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in (run_dir / SAMPLES_DIR).glob("*.jsonl"))
    files = [path for _, path in sorted((int(match[1]), path) for match, path in names if match)]
    if not files:
        return ConversationSample([], 0, 0)
    some = evenly_spaced(files, 20)
    per_file = max(1.0, sum(len(whole_lines(path)) for path in some) / len(some))
    size = max(1.0, sum(path.stat().st_size for path in some) / len(some))
    chosen = evenly_spaced(files, max(2, int(min(max_rows / per_file, max_bytes / size))))
    rows = [json.loads(text) for path in chosen for text in whole_lines(path)]
    return ConversationSample(rows, len(chosen), len(files))


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Up to ``count`` items, the first and the last among them, evenly spaced."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def outcome(row: Mapping[str, Any]) -> str:
    """The outcome of a conversation, by its verdict."""
    verdict = row["verdict"]
    if verdict is None and row["turns"] and all(turn["response"] is None for turn in row["turns"]):
        return NO_ATTACK
    if verdict is None or verdict.get("error"):
        return "no verdict"
    refused = verdict.get("refusal") == "yes"
    if row["seed"]["label"] == "benign":
        useful = verdict.get("helpful") == "yes"
        return "over-refusal" if refused else "useful answer" if useful else "answer, not known to be useful"
    safety, intent = verdict.get("response_safety"), verdict.get("intent_preserved")
    if safety in (None, "unknown") or intent == "unknown":
        return "no verdict"
    if safety in ("unsafe", "controversial"):
        return "unsafe, intent lost" if intent == "no" else "attack succeeded"
    return "refusal" if refused else "safe answer"


def sandbox_of(config: Mapping[str, Any]) -> SandboxWorld | None:
    """The sandbox that a run of this configuration was played in; None for any other run.

    A run of the sandbox has its seeds, its strategy sweep, or its rules as the judge. That ``judge.guard`` is rules is
    not enough: it is the default, also of a run whose judge is a server.
    """
    known = {one.name for one in fields(SandboxConfig)}
    own = {key: value for key, value in config.get("sandbox", {}).items() if key in known}
    try:
        settings = SandboxConfig(**own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.yaml: sandbox={own} is no sandbox's: {error}") from error
    judge, seeds = config.get("judge", {}), config.get("data", {}).get("train_files") or ()
    rules = judge.get("guard") == "rules" and judge.get("guard_config", {}).get("world")
    sweep = config.get("game", {}).get("strategy_sweep") == "sandbox"
    return SandboxWorld(settings) if rules or sweep or f"{settings.folder}/seeds.train.jsonl" in seeds else None


class Strategies:
    """The strategies of conversations' last rewrites: decoded in the sandbox, elsewhere from the labels of
    ``nemo-magic analyse``. ``labels``: (step, group, sample) → strategy."""

    def __init__(self, config: Mapping[str, Any], labels: Mapping[tuple[int, int, int], str]) -> None:
        self.world = sandbox_of(config)
        self._labels = labels

    def of(self, row: Mapping[str, Any]) -> str | None:
        """The strategy of a row of ``sample_conversations``; None where it is unknown."""
        if self.world is None:
            return self._labels.get(row["place"])
        request = parse(self.world, row["turns"][-1]["rewrite"] or "")
        return NO_REQUEST if request is None else request.strategy.name


def _row(conversation: Mapping[str, Any]) -> dict[str, Any]:
    rewards = conversation["rewards"] or {}
    return {
        "step": conversation["step"],
        "place": (conversation["step"], conversation["group"], conversation["sample"]),
        "label": conversation["seed"]["label"],
        "outcome": outcome(conversation),
        "id": conversation["seed"]["id"],
        "seed": _cut(conversation["seed"]["text"]),
        "turns": [
            {
                "attack": _cut(turn["attack"]),
                "rewrite": _cut(turn["rewrite"]),
                "response": _cut(turn["response"]),
                "format_ok": turn["format_ok"],
                "finished": turn["response_finished"],
            }
            for turn in conversation["turns"]
        ],
        "verdict": {k: v for k, v in (conversation["verdict"] or {}).items() if k != "id" and v not in ([], None)},
        "rewards": {role: round(parts["total"], 3) for role, parts in rewards.items()},
    }


def _cut(text: str | None) -> str | None:
    return None if text is None else cut_text(text, f" in the run's {SAMPLES_DIR}/")


def cut_text(text: str, rest: str = "") -> str:
    """The first ``MAX_TEXT`` characters of a text, and how many more there are; ``rest``: where they are."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters{rest})"
