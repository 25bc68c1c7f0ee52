"""Attacks and runs of a made-up world, with a mix that is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nemo_magic.analysis.attacks import AttackRecord
from nemo_magic.analysis.figures import LabelledAttack
from nemo_magic.analysis.labels import StrategyLabel
from nemo_magic.config import compose, to_yaml
from nemo_magic.report.series import Phase

ATTACKER = "/attacker/weights"
PHASES = [Phase(0, "defender", 1, 2), Phase(1, "attacker", 3, 4)]


def attack(
    step: int = 3, sample: int = 0, seed: str = "bring : a", text: str = "story bring : a", **own: Any
) -> AttackRecord:
    known: dict[str, Any] = {"harmful": True, "outcome": "refusal", "intent": True, "phase": None, "group": 0} | own
    return AttackRecord(step=step, samples=(sample,), seed=seed, messages=(text,), **known)


def labelled(*parts: str, **own: Any) -> LabelledAttack:
    return LabelledAttack(attack(**own), StrategyLabel("+".join(parts) or "plain", frozenset(parts)))


def row(
    step: int, group: int, texts: Sequence[str | None], sample: int = 0, seed: str = "bring : a", **own: Any
) -> dict[str, Any]:
    """A saved conversation; None is a message that no model wrote."""
    verdict = {"response_safety": "safe", "refusal": "yes", "intent_preserved": own.pop("intent", "yes")}
    turns = [
        {"attack": text, "rewrite": text or seed, "format_ok": True, "response": "i refuse", "response_finished": True}
        for text in texts
    ]
    return {
        "step": step, "group": group, "sample": sample, "seed": {"id": "s", "text": seed, "label": "harmful"},
        "turns": turns, "verdict": verdict, "rewards": {}, **own,
    }  # fmt: skip


@cache
def real_config() -> str:
    words = ["data.train_files=[/seeds.jsonl]", "judge.urls=[http://judge:8000]"]
    weights = [f"actors.attacker.restore_from_path={ATTACKER}", "actors.defender.restore_from_path=/defender/weights"]
    return to_yaml(compose("magic", [*words, *weights], command="analyse"))


def write_run(folder: Path, rows: Iterable[dict[str, Any]], attacker: str = ATTACKER) -> Path:
    """A run of real models, of two phases, two steps each, that saved ``rows``; its attacker began as ``attacker``."""
    (folder / "samples").mkdir(parents=True)
    by_step: dict[int, list[str]] = {}
    for one in rows:
        by_step.setdefault(one["step"], []).append(json.dumps(one, ensure_ascii=False) + "\n")
    for step, lines in by_step.items():
        (folder / "samples" / f"step_{step:04d}.jsonl").write_text("".join(lines), encoding="utf-8")
    steps = [
        {
            "step": step,
            "phase": phase.learner,
            "phase_index": phase.index,
            "learner": phase.learner,
            "time": "t",
            "train_rollouts/asr": 0.5,
        }
        for phase in PHASES
        for step in range(phase.first, phase.last + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    (folder / "config.yaml").write_text(real_config().replace(ATTACKER, attacker))
    return folder


def pool(path: Path, strategies: Iterable[str]) -> Path:
    """An attack pool whose rows are by these strategies."""
    rows = [
        {"seed": f"bring : {i}", "label": "harmful", "strategy": one, "reasoning": "r", "rewrite": f"wug {i}"}
        for i, one in enumerate(strategies)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path
