"""Suites of benchmarks, and files that are found in a folder by their usual names."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_magic.config import ConfigError, compose
from nemo_magic.config.composition import conf_dir
from nemo_magic.config.evaluation import describe_evaluation
from nemo_magic.config.schema import MagicConfig
from nemo_magic.data.catalogue import BENCHMARKS
from nemo_magic.evaluation.published import PUBLISHED

SUITES = sorted(path.stem for path in (conf_dir() / "suite").glob("*.yaml"))
SERVED = ["judge.urls=[http://judge:1]", "actors.defender.restore_from_path=/weights"]
ATTACKED = [*SERVED, "actors.attacker.restore_from_path=/attacker"]


def composed(*words: str) -> MagicConfig:
    return compose("eval_paper", [*ATTACKED, *words], command="evaluate")


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_is_composed_of_known_benchmarks_only(suite: str, tmp_path: Path) -> None:
    (tmp_path / "seeds.csv").write_text("prompt,label\n")
    cfg = composed(f"suite={suite}", "eval.tasks.own.benchmark=seeds", f"eval.folder={tmp_path}")
    assert {cfg.eval.benchmark_name(task) for task in cfg.eval.tasks} <= set(BENCHMARKS)
    assert cfg.name == "eval_paper"
    assert cfg.eval.max_judged_tokens == 512


def test_table_1_has_every_figure_that_the_paper_publishes() -> None:
    cfg = composed("suite=table1", "eval.tasks.dan.file=/f")
    told = {figure.published for task in cfg.eval.tasks for figure in cfg.eval.figures(task)} - {None}
    of_table_2 = {task.published for task in cfg.eval.capability.tasks.values()} - {None}
    assert told | of_table_2 == set(PUBLISHED["Qwen2.5-7B-Instruct"])
    assert not told & of_table_2


def test_over_refusal_has_every_benchmark_of_benign_requests() -> None:
    cfg = composed("suite=over_refusal", "eval.tasks.xstest.file=/f")
    benign = {name for name, one in BENCHMARKS.items() if any(figure.label == "benign" for figure in one.figures)}
    assert benign - {"seeds"} <= {cfg.eval.benchmark_name(task) for task in cfg.eval.tasks}


def test_a_transferred_attacker_plays_what_is_also_played_bare(tmp_path: Path) -> None:
    copy = tmp_path / "harmbench_behaviors_text_test.csv"
    copy.touch()
    cfg = composed("suite=table10", f"eval.folder={tmp_path}")
    assert {(task.attacker, task.file) for task in cfg.eval.tasks.values()} == {
        ("none", str(copy)),
        ("rewrite", str(copy)),
    }
    with pytest.raises(ConfigError, match="actors.attacker.restore_from_path has to be given"):
        compose("eval_paper", [*SERVED, "suite=table10", f"eval.folder={tmp_path}"], command="evaluate")


def test_suites_are_put_together_and_a_name_that_is_none_is_told_which_there_are() -> None:
    cfg = composed("suite=[table1,xteaming]", "eval.tasks.dan.file=/f")
    assert {"dan", "xteaming"} <= set(cfg.eval.tasks)
    with pytest.raises(ConfigError, match="Could not find 'suite/safty'") as error:
        composed("suite=safty")
    assert all(suite in str(error.value) for suite in SUITES)


def test_the_folder_is_searched_to_its_bottom_whatever_the_case_of_the_names(tmp_path: Path) -> None:
    for name in (
        "wild/eval/eval.tsv", "XSTest_Prompts.csv", "strongreject.jsonl",
        "hf/tulu-3-do-anything-now-eval/data/test-0.parquet", "other/eval.tsv.bak", ".hidden/or-bench-toxic.csv",
        "strongreject_small_dataset.csv",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    cfg = composed("suite=table1", f"eval.folder={tmp_path}", "eval.tasks.xstest.file=/elsewhere/mine.csv")
    assert {name: Path(task.file or "").name for name, task in cfg.eval.tasks_with_file.items()} == {
        "wildjailbreak": "eval.tsv",
        "dan": "test-0.parquet",
        "xstest": "mine.csv",
        "strongreject": "strongreject.jsonl",
    }
    told = describe_evaluation(cfg)
    names = "or-bench-toxic.csv or or_bench-toxic.csv or or_bench_toxic.csv"
    assert f"no file below eval.folder={tmp_path} is called {names}" in told


def test_two_files_that_could_be_meant_are_named(tmp_path: Path) -> None:
    for name in ("a/xstest_prompts.csv", "b/xstest.parquet"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    message = r"2 files could be xstest: a/xstest_prompts.csv, b/xstest.parquet; name the right one, eval.tasks.xstest"
    with pytest.raises(ConfigError, match=message):
        composed("suite=table1", f"eval.folder={tmp_path}")


def test_of_very_many_files_that_could_be_meant_a_few_are_named(tmp_path: Path) -> None:
    for method in range(12):
        copy = tmp_path / "HarmBench" / "results" / f"M{method:02d}" / "test_cases.json"
        copy.parent.mkdir(parents=True)
        copy.write_text(str(method))
    with pytest.raises(ConfigError, match=r"12 files could be harmbench_adversarial: .*M04/test_cases.json, 7 more;"):
        composed("suite=table1", f"eval.folder={tmp_path}")


def test_a_folder_that_is_none_or_has_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval.folder=/no/such/place: no such folder"):
        composed("eval.folder=/no/such/place")
    with pytest.raises(ConfigError, match=f"nothing is to be measured: .*below eval.folder={tmp_path} a usual name"):
        composed(f"eval.folder={tmp_path}")
