"""Evaluations in the report: the same figures as in ``results.json``, paired example by example, with their
examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.cli import main
from nemo_magic.formatting import percent
from nemo_magic.report import evaluation_charts, evaluation_page
from nemo_magic.report.evaluation_folder import EvaluationFolder
from nemo_magic.report.page import render
from tests.report.made_up_evaluation import TASKS, make_evaluation
from tests.report.made_up_run import make_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluations")
    make_evaluation(folder / "base", 0.35, "Qwen/Qwen2.5-7B-Instruct")
    make_evaluation(folder / "magic", 0.06, "Qwen2.5-7B-Instruct + MAGIC", folder / "base")
    make_evaluation(folder / "bare", 0.2, texts=False)
    return folder


@pytest.fixture(scope="module")
def both(home: Path) -> list[EvaluationFolder]:
    return [EvaluationFolder(home / name) for name in ("base", "magic")]


def embedded(page: str, id: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{id}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_every_figure_is_in_the_table_and_in_a_chart_with_its_interval(both: list[EvaluationFolder]) -> None:
    rows = evaluation_page.table(both)
    assert {(row["task"], row["figure"]) for row in rows} == set(both[0].figures)
    drawn = {}
    for chart in evaluation_charts.forests(both):
        for trace in chart.figure["data"]:
            if "error_x" in trace:
                for told, x, up in zip(trace["customdata"], trace["x"], trace["error_x"]["array"], strict=True):
                    drawn[trace["name"], told[0]] = (x, x + up)
    assert len(drawn) == 2 * len(rows)
    for row in rows:
        for one, cell in zip(both, row["cells"], strict=True):
            figure = one.figures[row["task"], row["figure"]]
            assert cell.rate == percent(figure["rate"])
            assert cell.interval == "{}–{}".format(*map(percent, figure["interval"]))
            x, high = drawn[one.name, f"{row['task']}, {row['figure']}"]
            assert x == pytest.approx(100 * figure["rate"], abs=0.01)
            assert high == pytest.approx(100 * figure["interval"][1], abs=0.05)


def test_the_second_evaluation_is_paired_with_the_first_as_its_own_results_pair_it(
    both: list[EvaluationFolder],
) -> None:
    colours = []
    for (task, name), figure in both[1].figures.items():
        pair, told = both[1].against(both[0], task, name), figure["against_baseline"]
        assert pair is not None
        assert (pair.pairs, pair.only_first, pair.only_second) == (
            told["pairs"], told["only_first"], told["only_second"]
        )  # fmt: skip
        row = next(row for row in evaluation_page.table(both) if (row["task"], row["figure"]) == (task, name))
        better = (told["difference"] > 0) is figure["higher_is_better"]
        expected = ("good" if better else "bad") if told["mid_p"] < 0.05 else ""
        assert row["cells"][1].mood == expected
        colours.append(expected)
    assert "good" in colours
    assert "" in colours


def test_one_evaluation_stands_beside_its_own_baseline(both: list[EvaluationFolder]) -> None:
    alone, beside = evaluation_page.table([both[1]]), evaluation_page.table(both)
    assert [row["cells"][0].change for row in alone] == [row["cells"][1].change for row in beside]
    cards = {label: value for label, value, _ in evaluation_page.overview(both[1])["cards"]}
    better = sum(row["cells"][0].mood == "good" for row in alone)
    worse = sum(row["cells"][0].mood == "bad" for row in alone)
    assert cards["against its baseline"] == f"{better} better, {worse} worse"


def test_what_the_paper_has_of_the_same_model_is_drawn_and_told(both: list[EvaluationFolder]) -> None:
    row = next(row for row in evaluation_page.table(both) if row["task"] == "harmbench")
    assert [cell.published for cell in row["cells"]] == ["25.0", "1.9"]
    names = [trace["name"] for chart in evaluation_charts.forests(both) for trace in chart.figure["data"]]
    assert {"base: the paper", "magic: the paper"} <= set(names)


def test_methods_and_categories_are_split_where_there_are_several(both: list[EvaluationFolder]) -> None:
    methods = {chart.title for chart in evaluation_charts.parts(both, "by_method")}
    assert methods == {
        "harmbench_adversarial: harmful asr", "harmbench_adversarial: harmful asr, any",
        "xteaming: harmful asr, any of 10", "xteaming: harmful asr",
    }  # fmt: skip
    split = evaluation_page.splits(both, "by_category")
    assert {one["title"].partition(":")[0] for one in split} == set(TASKS)
    figure = both[0].figures["harmbench", "harmful asr"]
    rows = dict(next(one["rows"] for one in split if one["title"] == "harmbench: harmful asr"))
    assert rows["plim"][0].rate == percent(figure["by_category"]["plim"]["rate"])


def test_the_best_of_several_attempts_is_a_curve_and_each_attempt_can_be_read(both: list[EvaluationFolder]) -> None:
    [chart] = evaluation_charts.curves(both)
    assert chart.title == "best_of_4: harmful asr, best of 4"
    for one, trace in zip(both, chart.figure["data"], strict=True):
        assert trace["x"] == [1, 2, 3, 4]
        assert trace["y"] == sorted(trace["y"])
        assert trace["y"][3] == pytest.approx(
            100 * one.figures["best_of_4", "harmful asr, best of 4"]["rate"], abs=0.01
        )
    row = next(
        row for row in evaluation_page.sample_examples(both, 10_000, 10_000_000).rows if row["id"] == "best_of_4_0"
    )
    assert [one["of"] for one in row["said"]] == [0] * 4 + [1] * 4


def test_general_capability_stands_beside_the_papers(both: list[EvaluationFolder]) -> None:
    [(name, cells)] = evaluation_page.capability(both)
    assert name == "MMLU"
    assert [(cell.rate, cell.interval, cell.published) for cell in cells if cell] == [
        ("73.5", "± 0.4", "73.3"), ("70.6", "± 0.4", "73.3")
    ]  # fmt: skip


def test_a_case_says_what_came_of_it_in_every_evaluation_and_what_was_said(both: list[EvaluationFolder]) -> None:
    sample = evaluation_page.sample_examples(both, 10_000, 10_000_000)
    row = next(row for row in sample.rows if row["id"] == "harmbench_3")
    came = [one.outcomes["harmbench"]["harmful asr"]["harmbench_3"][1] for one in both]
    words = {True: ["attack succeeded", "bad"], False: ["attack failed", "good"], None: ["no verdict", ""]}
    assert row["came"] == [[words[one]] for one in came]
    assert row["differs"] is (len(set(came)) > 1)
    assert [one["of"] for one in row["said"]] == [0, 1]
    assert row["said"][0]["turns"][0][0] == "fleb harmbench 3, turn 0"
    behaviour = next(row for row in sample.rows if row["id"] == "xteaming_behaviour_0")
    assert behaviour["said"] == []
    assert "any of 10" in behaviour["came"][0][0][0]


def test_of_many_cases_those_that_went_against_a_defender_come_first(both: list[EvaluationFolder]) -> None:
    everything = evaluation_page.sample_examples(both, 10_000, 10_000_000)
    some = evaluation_page.sample_examples(both, 240, 2_000)
    assert everything.rule.startswith(f"All {everything.total} cases.")
    assert len(some.rows) <= 240 < everything.total == some.total
    assert f"of {some.total} cases: of every task those that went against a defender first" in some.rule
    for task in TASKS:
        lost = {row["id"] for row in everything.rows if row["task"] == task and row["against"]}
        kept = {row["id"] for row in some.rows if row["task"] == task}
        assert lost <= kept or kept <= lost
    texts = sum(len(text) for row in some.rows for one in row["said"] for turn in one["turns"] for text in turn)
    assert texts <= 2_000


def test_an_evaluation_without_transcripts_has_cases_without_texts(home: Path) -> None:
    sample = evaluation_page.sample_examples([EvaluationFolder(home / "bare")], 10_000, 10_000_000)
    assert sample.total > 300
    assert sample.with_texts == 0
    assert all(row["said"] == [] for row in sample.rows)
    assert "Of 0 of them the texts are known." in sample.rule


def test_texts_are_in_no_part_of_the_page_that_is_shown_unasked_and_can_end_no_script(home: Path) -> None:
    one = EvaluationFolder(home / "magic")
    page = render([], [one])
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "fleb harmbench" not in shown
    assert embedded(page, "evaluation-names") == ["magic"]
    assert any(row["said"] for row in embedded(page, "case-rows"))
    assert "</script>" not in json.dumps(embedded(page, "case-rows"))
    assert 'id="overview"' not in page


def test_the_command_takes_runs_and_evaluations_together(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(home / "run", steps=30)
    out = home / "all.html"
    assert main(["report", str(run), str(home / "base"), str(home / "magic"), "--out", str(out)]) == 0
    assert "31 rows of figures of 1 run(s), 24 figures of 2 evaluation(s)" in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    assert "<title>run · base · magic – nemo-magic report</title>" in page
    for id in ("overview", "evaluations", "intervals", "game", "conversations", "cases"):
        assert f'<section id="{id}"' in page
    assert main(["report", str(home / "base")]) == 0
    assert (home / "base" / "report.html").stat().st_size > 4_000_000


def test_files_that_are_none_are_named(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"figures": 3}')
    assert main(["report", str(tmp_path)]) == 1
    assert f"{tmp_path / 'results.json'} holds no results of nemo-magic evaluate" in capsys.readouterr().err
