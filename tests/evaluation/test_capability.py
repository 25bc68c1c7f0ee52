"""What lm-evaluation-harness is asked to run, and what is made of the results that it writes."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors

from nemo_magic.cli import main
from nemo_magic.config import compose
from nemo_magic.config.capability import CapabilityConfig, CapabilityTaskConfig
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.capability import (
    capability_table,
    command_lines,
    read_capability,
)

PAPER = compose("eval_paper", command="capability").eval.capability.tasks


def results(path: Path, figures: dict[str, Any], date: float = 1.0, **more: Any) -> Path:
    """A file as the harness writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": figures, "date": date, "lm_eval_version": "0.4.13", "config": {}} | more))
    return path


def tokenizer(folder: Path, begins: bool = False) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    built = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    if begins:
        built.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    built.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_tasks_that_are_asked_alike_are_one_call_and_every_task_is_in_one(tmp_path: Path) -> None:
    config = CapabilityConfig(url="http://127.0.0.1:8000/v1", tokenizer=tokenizer(tmp_path), limit=3, tasks=PAPER)
    calls = [dict(pairwise(words)) for words in command_lines(config, 4096, "out")]
    asked = {call["--tasks"]: call for call in calls}
    assert set(asked) == {"ifeval", "arc_challenge,gpqa_main_zeroshot,truthfulqa_mc2", "mmlu", "bbh"}
    assert asked["mmlu"]["--num_fewshot"] == "5"
    assert {call["--limit"] for call in calls} == {"3"}
    assert asked["ifeval"]["--model"] == "local-chat-completions"
    arguments = dict(pair.split("=", 1) for pair in asked["mmlu"]["--model_args"].split(","))
    assert arguments["base_url"] == "http://127.0.0.1:8000/v1/completions"
    assert (arguments["tokenizer"], arguments["max_length"], arguments["model"]) == (str(tmp_path), "4096", "defender")


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("template", [True, False])
def test_a_text_is_begun_as_its_tokenizer_does_unless_the_chat_template_does(
    tmp_path: Path, begins: bool, template: bool
) -> None:
    tasks = {"mine": CapabilityTaskConfig(task="made_up", chat_template=template)}
    [words] = command_lines(
        CapabilityConfig(url="http://127.0.0.1:8000/v1", tokenizer=tokenizer(tmp_path, begins), tasks=tasks), 64, "out"
    )
    assert f"add_bos_token={begins and not template}" in words[3].split(",")
    assert ("--apply_chat_template" in words) is template


def test_the_command_prints_what_a_shell_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tokenizer(tmp_path / "a folder")
    given = ["eval.capability.url=http://127.0.0.1:8000/v1", f"eval.capability.tokenizer='{folder}'"]
    assert main(["capability", "-cn", "eval_paper", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[:2] for line in lines] == [["lm_eval", "--model"]] * 4
    assert any(f"tokenizer={folder}," in word for word in shlex.split(lines[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "eval.capability.url is null"),
        (["eval.capability.url=http://127.0.0.1:8000/v1"], "eval.capability.tokenizer is null"),
        (
            ["eval.capability.url=http://127.0.0.1:8000/v1", "eval.capability.tokenizer=/no"],
            "there is no tokenizer.json",
        ),
        (["eval.capability.url=http://127.0.0.1:8000"], "must be a base url such as"),
        (["eval.capability.tokenizer='a,b'"], "must not contain a comma"),
        (["eval.capability.tasks.mmlu.metric=acc"], "must name its filter too"),
        (["eval.capability.tasks.mmlu.how=guess"], "must be one of: score, text, chat"),
        (["eval.capability.tasks.mmlu.hw=text"], "hw"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_key(
    capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(["capability", "-cn", "eval_paper", *given]) == 2
    assert said in capsys.readouterr().err


def test_figures_are_read_with_their_errors_beside_the_papers(tmp_path: Path) -> None:
    results(
        tmp_path / "a" / "results_1.json",
        {
            "ifeval": {"prompt_level_loose_acc,none": 0.75, "prompt_level_loose_acc_stderr,none": 0.02, "alias": "a"},
            "mmlu": {"acc,none": 0.5, "acc_stderr,none": "N/A"},
        },
        **{
            "n-shot": {"ifeval": 0, "mmlu_a": 5},
            "n-samples": {name: {"effective": size} for name, size in {"ifeval": 7, "mmlu_a": 4, "mmlu_b": 2}.items()},
            "group_subtasks": {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_a", "mmlu_b"]},
        },
    )  # fmt: skip
    rows, notes = read_capability(tmp_path, PAPER, "Qwen/Qwen2.5-7B-Instruct")
    assert [(row.name, row.value, row.stderr, row.cases, row.shots, row.published) for row in rows] == [
        ("ifeval", 0.75, 0.02, 7, 0, 0.749),
        ("mmlu", 0.5, None, 6, None, 0.733),
    ]
    assert sum("not measured" in note for note in notes) == len(PAPER) - 2
    assert any("lm-evaluation-harness 0.4.13" in note for note in notes)
    header, *table = capability_table(rows)
    assert header[-1] == "published"
    assert table[0] == ["ifeval", "ifeval prompt_level_loose_acc", "75.0", "2.0", "7", "0", "74.9"]


def test_of_a_task_that_was_run_twice_the_newest_counts_and_a_limit_is_said(tmp_path: Path) -> None:
    task = {"mine": CapabilityTaskConfig(task="made_up")}
    results(tmp_path / "results_b.json", {"made_up": {"acc,none": 0.25}}, date=1.0)
    results(tmp_path / "results_a.json", {"made_up": {"acc,none": 0.5}}, date=2.0, config={"limit": 10})
    rows, notes = read_capability(tmp_path, task, None)
    assert [row.value for row in rows] == [0.5]
    assert "capability mine: of each of its tasks the first 10 cases only" in notes
    [row], notes = read_capability(tmp_path / "results_b.json", task, None)
    assert row.value == 0.25
    assert not any("first" in note for note in notes)


def test_a_metric_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    results(tmp_path / "results_1.json", {"made_up": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "made_up"}})
    with pytest.raises(DataError, match="metric=f1,none: .* has of made_up: acc,none"):
        read_capability(tmp_path, {"mine": CapabilityTaskConfig(task="made_up", metric="f1,none")}, None)


@pytest.mark.parametrize("content", ["{", "[]", '{"results": {"a": 1}, "date": 1}', '{"results": {}}'])
def test_what_the_harness_did_not_write_is_refused_by_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "results_1.json").write_text(content)
    with pytest.raises(DataError, match="results_1.json is no result of lm-evaluation-harness"):
        read_capability(tmp_path, PAPER, None)
    with pytest.raises(DataError, match="there is no results"):
        read_capability(tmp_path / "elsewhere", PAPER, None)
