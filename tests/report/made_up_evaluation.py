"""A finished evaluation's folder, of made-up examples with made-up verdicts, written by what writes real ones."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import yaml

from nemo_magic.data.catalogue import BENCHMARKS
from nemo_magic.evaluation.capability import Capability
from nemo_magic.evaluation.example import Example, expand_attempts
from nemo_magic.evaluation.metrics import JudgedExample, MetricResult, belongs, measure
from nemo_magic.evaluation.results import Results, read_outcomes
from nemo_magic.evaluation.transcripts import Transcript
from nemo_magic.game.episode import Answer, Label, Safety, Verdict

TASKS = ("wildguardtest", "harmbench_adversarial", "harmbench", "or_bench_toxic", "xstest", "xteaming", "best_of_4")
METHODS = ("ZIB", "QUO", "PAX", "LUM", "TREV")


def make_evaluation(
    folder: Path,
    harm: float,
    model: str | None = None,
    baseline: Path | None = None,
    texts: bool = True,
    over: float = 0.05,
    size: int = 80,
) -> Path:
    """``harm``: share of harmful examples that succeed; ``over``: of benign ones refused; ``size``: of a task."""
    folder.mkdir(parents=True)
    draw = random.Random(folder.name)
    measured: list[MetricResult] = []
    for task in TASKS:
        examples, figures = made_up_examples(task, size), BENCHMARKS.get(task, BENCHMARKS["harmbench"]).figures
        if task == "best_of_4":
            examples, figures = expand_attempts(examples[:20], 4), (replace(figures[0], best_of=4, published=None),)
        judged = [JudgedExample(example, _verdict(example, harm, over, draw)) for example in examples]
        measured += [measure(task, figure, judged) for figure in figures]
        if texts:
            transcript = Transcript(folder, task, 0)
            for example, verdict in judged:
                assert verdict is not None
                if any(belongs(figure, example) for figure in figures):
                    said = "bad grub" if verdict.response_safety is Safety.UNSAFE else "sorry, no wug"
                    transcript.add(example, [(turn, f"{said} {n}") for n, turn in enumerate(example.turns)], verdict)
            transcript.close()
    notes = ["dan: not measured, eval.tasks.dan.file is null", "harmbench: rows: 80, published 320"]
    capability = [Capability("MMLU", "mmlu", "acc,none", 0.7 + harm / 10, 0.004, 14042, 5, 0.733)] if model else []
    before = None if baseline is None else (str(baseline), read_outcomes(baseline))
    Results(f"{folder.name}: {model}", model, "made-up@1", measured, notes, before, {}, capability).save(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "eval": {"model": model}}))
    return folder


def made_up_examples(task: str, size: int) -> list[Example]:
    """The same for every evaluation."""
    benign = task in ("wildguardtest", "xstest")
    return [
        Example(
            f"{task}_{i}",
            tuple(f"fleb {task} {i}, turn {turn}" for turn in range(2 if task == "xteaming" else 1)),
            Label.BENIGN if benign and i % 2 else Label.HARMFUL,
            request=f"norp the fleb {i}",
            category=f"{('plim', 'vask', 'glorp & drim', 'a rather long category of made-up words')[i % 4]}",
            method=METHODS[i % len(METHODS)] if task in ("harmbench_adversarial", "xteaming") else "",
            behaviour=f"{task}_behaviour_{i // 10}" if task in ("harmbench_adversarial", "xteaming") else "",
            adversarial=i % 4 < 2 if task == "wildguardtest" else None,
        )
        for i in range(size)
    ]


def _verdict(example: Example, harm: float, over: float, draw: random.Random) -> Verdict:
    share = harm * (1 + METHODS.index(example.method)) / 3 if example.method else harm
    chance = draw.random()
    if chance > 0.99:
        return Verdict(example.id, error="no answer")
    if example.label is Label.BENIGN:
        return Verdict(example.id, response_safety=Safety.SAFE, refusal=Answer.YES if chance < over else Answer.NO)
    unsafe = chance < share
    return Verdict(
        example.id,
        response_safety=Safety.UNSAFE if unsafe else Safety.SAFE,
        refusal=Answer.NO if unsafe or chance > 0.9 else Answer.YES,
    )
