"""Seeds as red-teaming tools read them; the formats were tried on the tools themselves (docs/red_teaming.md)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from jinja2.sandbox import SandboxedEnvironment

from nemo_magic.cli import main
from tests.evaluation.made_up import ROWS, write

SEEDS = [
    {"prompt": "norp the wug", "label": "harmful", "id": "n1"},
    {"prompt": "a fleb", "label": "benign", "id": "f1"},
    {"prompt": 'norp {{ it }}, "so", {% if %} and\nthen: ü', "label": "harmful", "id": "n2"},
    {"prompt": "norp the wug", "label": "harmful", "id": "n3"},
]


def export(tmp_path: Path, *words: str, rows: list[dict[str, str]] = SEEDS, status: int = 0) -> Path:
    out = tmp_path / "out.file"
    seeds = write(tmp_path / "seeds.jsonl", rows)
    assert main(["seeds-export", str(seeds), "--out", str(out), *words]) == status
    return out


def test_garak_reads_a_payload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = json.loads(export(tmp_path, "--format", "garak").read_text(encoding="utf-8"))
    # What garak's own schema requires, and nothing that it does not know.
    assert payload == {
        "garak_payload_name": "out", "payload_types": ["Text"], "payloads": [SEEDS[0]["prompt"], SEEDS[2]["prompt"]]
    }  # fmt: skip
    assert "4 rows read, 2 kept (dropped a text that came before: 1; not harmful: 1)" in capsys.readouterr().out


def test_garak_reads_stubs_of_an_intent(tmp_path: Path) -> None:
    stubs = json.loads(export(tmp_path, "--format", "garak-intents", "--label", "all").read_text(encoding="utf-8"))
    assert stubs == [SEEDS[0]["prompt"], SEEDS[1]["prompt"], SEEDS[2]["prompt"]]


def test_pyrit_reads_objectives_whose_braces_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*SEEDS, {"prompt": "{% for wug in flebs %}", "label": "harmful", "id": "n4"}]
    dataset = yaml.safe_load(export(tmp_path, "--format", "pyrit", rows=rows).read_text(encoding="utf-8"))
    assert (dataset["dataset_name"], dataset["seed_type"]) == ("out", "objective")
    assert [seed["name"] for seed in dataset["seeds"]] == ["n1", "n2"]
    rendered = [SandboxedEnvironment().from_string(seed["value"]).render() for seed in dataset["seeds"]]
    assert rendered == [SEEDS[0]["prompt"], SEEDS[2]["prompt"]]
    assert "a statement of Jinja, which PyRIT would read: 1" in capsys.readouterr().out


def test_openrt_reads_a_column_of_goals(tmp_path: Path) -> None:
    with export(tmp_path, "--format", "openrt", "--label", "benign").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"Goal": "a fleb", "id": "f1", "category": ""}]


def test_any_benchmark_of_single_messages_may_be_exported(tmp_path: Path) -> None:
    out = tmp_path / "goals.csv"
    words = ["seeds-export", "--benchmark", "harmbench", "--format", "openrt", "--out", str(out)]
    assert main([*words, str(write(tmp_path / "hb.csv", ROWS["harmbench"]))]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        assert [(row["id"], row["category"]) for row in csv.DictReader(file)] == [
            ("norp_0", "vask"), ("norp_1", "plim"), ("norp_2", "vask")
        ]  # fmt: skip


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a fleb", "label": "benign"}]
    assert not export(tmp_path, "--format", "garak", rows=rows, status=1).exists()
    assert "seeds-export: no seed is left to write; 1 rows read, 0 kept" in capsys.readouterr().err
    (tmp_path / "out.file").mkdir()
    export(tmp_path, "--format", "garak", status=1)
    assert f"--out={tmp_path / 'out.file'} cannot be written" in capsys.readouterr().err
