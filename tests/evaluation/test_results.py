"""The table: intervals, directions, the published row, a baseline; and what cannot be evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_magic.config import ConfigError, compose
from nemo_magic.data.catalogue import BENCHMARKS, Figure, Metric
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.metrics import JudgedExample, measure
from nemo_magic.evaluation.published import PUBLISHED, published_row
from nemo_magic.evaluation.results import Results, read_outcomes
from nemo_magic.game.episode import Label, Safety, Verdict

SERVED = ["judge.urls=[http://judge:1]", "actors.defender.restore_from_path=/weights"]


def judged(hits: int, count: int, text: str = "wug") -> list[JudgedExample]:
    harm = [Safety.UNSAFE] * hits + [Safety.SAFE] * (count - hits)
    return [
        JudgedExample(
            Example(f"c{i}", (f"{text} {i}",), Label.HARMFUL, method=f"M{i % 2}"),
            Verdict(f"c{i}", response_safety=safety),
        )
        for i, safety in enumerate(harm)
    ]


def results(rows: list[JudgedExample], baseline: Any = None) -> Results:
    figure = BENCHMARKS["harmbench"].figures[0]
    return Results("t", "Qwen2.5-7B-Instruct + MAGIC", "g@1", [measure("hb", figure, rows)], ["a note"], baseline)


def test_the_table_has_direction_interval_and_the_published_figure() -> None:
    text = results(judged(4, 40)).to_markdown()
    row = next(line for line in text.splitlines() if line.startswith("| hb |"))
    task, figure, rate, interval, examples, unknown, published = (cell.strip() for cell in row.strip("|").split("|"))
    assert (task, figure, rate, examples, unknown, published) == ("hb", "harmful asr ↓", "10.0", "40", "0", "1.9")
    low, high = map(float, interval.split("–"))
    assert low < 10 < high
    assert "## hb: harmful asr, by method" in text
    assert "- a note" in text


def test_a_baseline_counts_on_equal_prompts_only(tmp_path: Path) -> None:
    results(judged(20, 40)).save(tmp_path)
    before = ("before", read_outcomes(tmp_path))
    now = results(judged(4, 40), before)
    pair = now.compare(now.metrics[0])
    assert pair is not None
    assert (pair.pairs, pair.only_first, pair.only_second) == (40, 0, 16)
    assert "| -40.0 | 1.53e-05 | 40 |" in now.to_markdown()
    other = results(judged(4, 40, "fleb"), before)
    pair = other.compare(other.metrics[0])
    assert pair is not None
    assert pair.pairs == 0
    assert "| – | – | – |" in other.to_markdown()
    (tmp_path / "outcomes.json").write_text("[]")
    with pytest.raises(DataError, match="eval.baseline=.*: it has no outcomes of an evaluation"):
        read_outcomes(tmp_path)


def test_published_names_are_those_of_benchmarks_and_capabilities_and_models_are_known_by_any_spelling() -> None:
    told = {figure.published for benchmark in BENCHMARKS.values() for figure in benchmark.figures}
    told |= {task.published for task in compose("eval_paper", command="capability").eval.capability.tasks.values()}
    assert all(set(row) == told - {None} for row in PUBLISHED.values())
    assert published_row("Qwen/qwen2.5-7b-instruct") == PUBLISHED["Qwen2.5-7B-Instruct"]
    assert published_row("Qwen2.5-7B") == {}
    assert published_row(None) == {}


def test_figures_of_a_benchmark_have_names_of_their_own() -> None:
    for benchmark in BENCHMARKS.values():
        assert len({figure.name for figure in benchmark.figures}) == len(benchmark.figures)
        assert set(benchmark.required) <= set(benchmark.columns)
    assert Figure(Metric.ASR, any_of=True, attempts=10).name == "harmful asr, any of 10"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is to be measured: give eval.tasks.wildguardtest.file"),
        (["eval.tasks.dan.file=/f", "eval.tasks.dan.benchmark=xtest"], "did you mean eval.tasks.dan.benchmark=xstest"),
        (["eval.tasks.dan.file=/f", "eval.tasks.dan.attacker=some"], "attacker='some' must be one of: none, rewrite"),
        (["eval.tasks.dan.file=/f", "eval.tasks.dan.attacker=rewrite"], "actors.attacker.restore_from_path has to be"),
        (["eval.tasks.dan.file=/f", "eval.tasks.dan.limit=0"], "limit=0 must be at least 1"),
        (["eval.tasks.dan.fil=/f"], "eval.tasks.dan.fil: Key 'fil' not in 'EvalTaskConfig'"),
        (["eval.task.dan.file=/f"], "unknown key eval.task.dan.file; did you mean"),
        (
            ["eval.tasks.dan.file=/f", "eval.extra_verdict_fields=[charm]"],
            "eval.extra_verdict_fields='charm' must be one of",
        ),
        (["eval.tasks.dan.file=/f", "eval.chunk_size=0"], "eval.chunk_size=0 must be at least 1"),
        (["eval.tasks.dan.file=/f", "game.defender_cot=true"], "would cut off the answer of a defender that reasons"),
        (["eval.tasks.dan.file=/f", "actors.defender.remote.urls=[http://h/v1]"], "remote.model has to be given"),
        (
            ["eval.tasks.xstest.file=/f", "judge.urls=[]", "judge.launch=true", "judge.guard=harmbench"],
            "never answers refusal",
        ),
        (["eval.tasks.dan.file=/f", "judge.urls=[]"], "judge.urls is empty and judge.launch=false"),
        (["eval.tasks.dan.file=/f", "model.tensor_model_parallel_size=3"], "not divisible by"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        compose("eval_paper", [*SERVED, *words], command="evaluate")


def test_an_evaluation_without_an_attacker_needs_neither_its_weights_nor_seeds() -> None:
    cfg = compose("eval_paper", [*SERVED, "eval.tasks.dan.file=/f"], command="evaluate")
    assert cfg.eval.fields() == {"response_safety"}
    assert list(cfg.eval.tasks_with_file) == ["dan"]
