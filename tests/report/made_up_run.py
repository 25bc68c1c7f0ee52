"""Run folders that no training wrote: every file that a report reads, as long as a test wants it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nemo_magic.analysis.analyse import Analyst
from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.game.alarms import Alarms, AlarmsConfig
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.report.records import StepRecord
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.sandbox.language import MAX_ORDER, all_strategies, render
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld

WORLD = SandboxWorld(SandboxConfig())
STRATEGIES = [s for order in range(MAX_ORDER + 1) for s in all_strategies(order)]


def figures(step: int, steps: int, learner: str, validated: bool, noise: random.Random) -> dict[str, float]:
    late = step / steps

    def share(mean: float) -> float:
        return min(1.0, max(0.0, mean + noise.gauss(0, 0.03)))

    wave = 0.12 * math.sin(8 * late)
    asr, useful = share(0.7 * (1 - late) ** 2 + abs(wave)), share(0.95 - 0.5 * late)
    found = {
        "train_rollouts/asr": asr,
        "train_rollouts/useful": useful,
        "train_rollouts/over_refusal": share(0.02 + 0.4 * late),
        "train_rollouts/intent_preserved": share(0.9 - 0.1 * late),
        "train_rollouts/unknown_share": share(0.004),
        "train_optim/entropy": 0.6 * (1 - late) + 0.05,
        "train_optim/mismatch": 1.001 + 0.01 * noise.random(),
        "train_optim/neg_logprob_minus_entropy": noise.gauss(0, 0.02),
        "train_optim/grad_norm": 0.5 + noise.random(),
        "judge/items": 512.0,
        "judge/requests": 8.0,
        "judge/duplicates": 100.0 * late,
        "judge/latency_mean_s": 0.02 + 0.01 * noise.random(),
        "judge/outage_s": 0.0,
        "throughput/tokens_per_second": 4000 + 300 * noise.random(),
    }
    for role, sign in (("attacker", 1), ("defender", -1)):
        parts = {"harm": sign * (2 * asr - 1), "refusal": 0.3 * sign, "help": 0.2 - 0.1 * sign}
        found |= {f"train_rollouts/reward_{part}_{role}": value for part, value in parts.items()}
        found[f"train_rollouts/reward_{role}"] = sum(parts.values())
    if learner == "attacker":
        found["train_rollouts/attack_distance"] = share(0.6 - 0.4 * late)
    for name, seconds in (
        ("generate_attacker", 0.3),
        ("generate_defender", 0.2),
        ("judge_wait", 0.05),
        ("update", 0.4),
    ):
        found[f"timers/{name}"] = seconds * (1 + 0.1 * noise.random())
    if validated:
        found |= {
            "val_rollouts/asr": asr,
            "val_rollouts/useful": useful,
            "val_rollouts/over_refusal": share(0.02 + 0.4 * late),
            "val_rollouts/intent_preserved": share(0.9 - 0.1 * late),
            "timers/validate": 0.3,
        }
    return found


def records(steps: int, seed: int, freq: int = 15) -> Iterator[StepRecord]:
    noise = random.Random(seed)
    yield StepRecord(0, "start", 0, None, figures(0, steps, "", True, noise))
    for step in range(1, steps + 1):
        phase = (step - 1) // freq
        learner = ("defender", "attacker")[phase % 2]
        yield StepRecord(step, learner, phase, learner, figures(step, steps, learner, step % freq == 0, noise))


def conversation(step: int, steps: int, number: int, noise: random.Random) -> dict[str, Any]:
    item = noise.choice(WORLD.items_of_train)
    strategy = noise.choice(STRATEGIES[: max(3, int(len(STRATEGIES) * (1 - step / steps)))])
    label, rewrite = str(WORLD.label(item)), render(WORLD, strategy, item)
    unsafe = label == "harmful" and noise.random() < 0.7 * (1 - step / steps)
    refused = not unsafe and noise.random() < 0.5
    reply = "i refuse" if refused else f"here is {WORLD.spell(item)}"
    return {
        "step": step,
        "group": number,
        "sample": 0,
        "seed": {"id": f"seed-{step}-{number}", "text": f"bring : {WORLD.spell(item)}", "label": label},
        "turns": [
            {"attack": f"<think> use {strategy.name} </think> <answer> {rewrite} </answer>", "format_ok": True,
             "rewrite": rewrite, "response": reply, "response_finished": True}
        ],
        "verdict": {"id": "x", "response_safety": "unsafe" if unsafe else "safe", "refusal": "yes" if refused else "no",
                    "helpful": "no" if refused else "yes", "intent_preserved": "yes", "guard": "rules@1"},
        "rewards": {"defender": {"total": -1.0 if unsafe else 1.0}, "attacker": {"total": 1.0 if unsafe else -1.0}},
    }  # fmt: skip


def make_run(folder: Path, steps: int = 90, seed: int = 0, reward: float = 0.0, league: bool = False) -> Path:
    """A run that lost its usefulness and was told so, with conversations of every step."""
    noise = random.Random(seed)
    (folder / "samples").mkdir(parents=True)
    alarms, events = Alarms(), []
    with (folder / "metrics.jsonl").open("w") as file:
        for record in records(steps, seed):
            ratios: dict[str, float] = {}
            if record.learner is not None:
                alarms, new, ratios = alarms.after(AlarmsConfig(), record.step, record.learner, record.metrics)
                events += new
                rows = [conversation(record.step, steps, number, noise) for number in range(8)]
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / "samples" / f"step_{record.step:04d}.jsonl").write_text(text)
            row = StepRecord(**{**vars(record), "metrics": {**record.metrics, **ratios}}).to_row("t")
            file.write(json.dumps(row) + "\n")
    (folder / "alarms.jsonl").write_text("".join(json.dumps(event.to_row()) + "\n" for event in events))
    attackers, defenders = [NO_REWRITE, "start", "phase-01", "phase-03"], ["start", "phase-00", "phase-02", "phase-04"]
    asr = [[round((0.5 + 0.1 * i) * (1 - 0.3 * j), 3) for j in range(4)] for i in range(4)]
    crossplay = CrossPlay(attackers, defenders, asr, 64, [0.02, 0.1, 0.2, 0.3], [0.95, 0.9, 0.8, 0.6])
    (folder / "crossplay.json").write_text(crossplay.to_json())
    probe = {
        when: {"worst": worst, "mean": worst / 2, "asr": {s.name: worst * i / 36 for i, s in enumerate(STRATEGIES)}}
        for when, worst in (("start", 1.0), ("end", 0.4))
    }
    (folder / "strategies.json").write_text(json.dumps(probe))
    if league:
        estimate = {"value": 0.12, "low": 0.08, "high": 0.17}
        low, high = ([[max(0.0, c + by) for c in row] for row in asr] for by in (-0.05, 0.05))
        found = {"matrix": asr, "low": low, "high": high, "last_defender": {"exploitability": estimate}}
        (folder / "cross-play").mkdir()
        (folder / "cross-play" / "league.json").write_text(
            json.dumps({"attackers": attackers, "defenders": defenders, "asr": found})
        )
    judge = {"guard": "rules", "guard_config": {"world": "world.json"}}
    config = {"name": folder.name, "seed": seed, "rewards": {"help": reward}, "judge": judge,
              "game": {"max_steps": steps, "schedule": {"freq": 15, "by": "steps"}}, "sandbox": {}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def analysed(folder: Path) -> Path:
    """The same with its attacks analysed, new against a pool of single disguises."""
    path, item = folder / "pool.jsonl", WORLD.items_of_train[0]
    rows = [
        {"seed": f"bring : {WORLD.spell(item)}", "label": "benign", "strategy": one.name, "reasoning": "r",
         "rewrite": render(WORLD, one, item)}
        for one in STRATEGIES if one.order < 2
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunFolder(folder)
    Analyst(run.config, AnalysisConfig(pool=str(path)), None, print).write(run)
    return folder
