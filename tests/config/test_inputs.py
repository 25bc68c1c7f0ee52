"""Every file and folder that a command will read is looked at before anything is imported, and all that is missing is
said at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_magic import cli
from nemo_magic.config import ConfigError, compose
from nemo_magic.config.inputs import Input, inputs, missing, refuse_missing

RUN: dict[str, list[str]] = {
    "train": ["-cn", "magic", "model=llama31_8b", "judge.urls=[http://j:1]", "data.train_files=[here/a.jsonl,b.csv]",
              "data.validation_files=[here/v.jsonl]", "data.test_files=[here/t.jsonl]", "model.tokenizer.type=here/tok",
              "actors.attacker.restore_from_path=here/att", "actors.defender.restore_from_path=here/d.nemo"],
    "sft": ["-cn", "sft_sandbox_attacker", "sft.pool=here/p.jsonl", "sft.val_pool=here/v.jsonl",
            "model.tokenizer.type=here/tok", "actors.attacker.restore_from_path=here/att"],
}  # fmt: skip
WANTED = {
    "train": {"data.train_files", "data.validation_files", "data.test_files", "model.tokenizer.type",
              "actors.attacker.restore_from_path", "actors.defender.restore_from_path"},
    "sft": {"sft.pool", "sft.val_pool", "model.tokenizer.type", "actors.attacker.restore_from_path"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    return tmp_path


def make(path: str, *files: str) -> None:
    """A file, or a folder of ``files``."""
    target = Path(path)
    for one in [target / file for file in files] or [target]:
        one.parent.mkdir(parents=True, exist_ok=True)
        one.write_text("{}")


@pytest.mark.process
@pytest.mark.parametrize("command", list(RUN))
def test_a_dry_run_names_all_that_is_missing_and_a_run_refuses_it_before_nemo_is_imported(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *RUN[command], "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# missing ")]
    assert {line.split()[2].split("=")[0] for line in lines} == WANTED[command]
    code = "import sys; from nemo_magic import cli; status = cli.main(sys.argv[1:]);" \
           "assert not {'torch', 'nemo', 'megatron'} & set(sys.modules); sys.exit(status)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, command, *RUN[command]], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    for key in WANTED[command]:
        assert f"{key}=" in done.stderr


def test_nothing_is_said_of_what_is_there() -> None:
    for name in ("here/a.jsonl", "b.csv", "here/v.jsonl", "here/t.jsonl", "here/d.nemo", "here/p.jsonl"):
        make(name)
    make("here/tok", "tokenizer.json")
    make("here/att", "metadata.json")
    for command, words in RUN.items():
        assert missing(compose(words[1], words[2:], command=command), command) == []


def test_a_run_that_goes_on_needs_no_weights_to_start_from() -> None:
    words = RUN["train"]
    found = {one.key for one in inputs(compose(words[1], words[2:]), "train", starts=False)}
    assert found == {key for key in WANTED["train"] if "restore" not in key}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Input("k", "nowhere/deep/x"), "k=nowhere/deep/x: no such file ("),
        (Input("k", "here"), "k=here: a folder, and it has to be a file"),
        (Input("k", "here", ("metadata.json", "config.json")), "the folder has none of metadata.json, config.json"),
        (Input("k", "here/not", ("a",), or_hub=True), "k=here/not: no such file or folder"),
        (Input("k", "/models/llama", ("a",), or_hub=True), "k=/models/llama: no such file or folder"),
        (Input("k", "./llama", ("a",), or_hub=True), "no such file or folder"),
        (Input("k", "../llama", ("a",), or_hub=True), "no such file or folder"),
        (Input("k", "a/b/c", ("a",), or_hub=True), "no such file or folder"),
        (Input("k", "owner/model-1.5", ("a",), or_hub=True), None),
        (Input("k", "gpt2", ("a",), or_hub=True), None),
    ],
)
def test_a_path_is_a_file_a_folder_with_something_in_it_or_a_name_on_the_hub(one: Input, said: str | None) -> None:
    problem = one.problem()
    assert (problem is None) if said is None else (said in (problem or ""))


def test_an_evaluation_reads_its_tasks_files_results_and_models() -> None:
    words = ["eval.tasks.test.file=here/t.jsonl", "eval.baseline=here/before", "eval.capability.results=here/harness",
             "actors.defender.restore_from_path=null"]  # fmt: skip
    cfg = compose("eval_sandbox", words, command="evaluate")
    cfg.actors.defender.hf.path = "here/hf"
    said = " ".join(missing(cfg, "evaluate"))
    for key in ("eval.tasks.test.file", "eval.tasks.validation.file", "eval.baseline", "eval.capability.results",
                "actors.defender.hf.path", "actors.attacker.restore_from_path", "model.tokenizer.type"):  # fmt: skip
        assert f"{key}=" in said
    make("here/before", "outcomes.json")
    make("here/harness", "deep/results_1.json")
    make("here/hf", "config.json", "model.safetensors")
    said = " ".join(missing(cfg, "evaluate"))
    assert not any(f"{key}=" in said for key in ("eval.baseline", "eval.capability.results", "actors.defender.hf.path"))


def test_what_a_remote_role_or_another_command_does_not_read_is_not_asked_for() -> None:
    words = [*RUN["train"][2:-1], "actors.defender.remote.urls=[http://d:1/v1]", "actors.defender.remote.model=m",
             "actors.defender.restore_from_path=null", "game.schedule.train_roles=[attacker]"]  # fmt: skip
    keys = {one.key for one in inputs(compose("magic", words), "train")}
    assert "actors.defender.restore_from_path" not in keys


def test_guards_in_this_process_have_models_and_worlds_that_are_looked_at() -> None:
    own: dict[str, Any] = {"guards": {"a": {"guard": "rubric", "model": {"kind": "transformers", "path": "here/m"}},
                                      "b": {"guard": "rules", "world": "here/world.json"}}}  # fmt: skip
    cfg = compose("magic_sandbox")
    cfg.judge.guard_config = json.loads(json.dumps(own))
    found = missing(cfg, "train")
    assert any("judge.guard_config.guards.a.model.path=here/m" in line for line in found)
    assert any("judge.guard_config.guards.b.world=here/world.json" in line for line in found)
    assert found[-1].startswith("`nemo-magic sandbox` writes")
    with pytest.raises(ConfigError, match="here/world.json"):
        refuse_missing(cfg, "train")
