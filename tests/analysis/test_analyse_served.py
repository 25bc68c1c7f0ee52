"""``nemo-magic analyse`` with servers that are not ours: llama.cpp names strategies and embeds attacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from nemo_magic import cli
from tests.analysis.analysing import found_in
from tests.analysis.made_up_attacks import row, write_run
from tests.judge import tiny_checkpoint

pytestmark = pytest.mark.process

TEXTS = [f"wug {n} {'dax ' * n}zup" for n in range(6)]
TOO_LONG = "x" * 600
# What the tiny model reads is short, and so is this.
RUBRIC = """
strategy: "{{strategies}} {{attack}}"
strategies:
  - {name: one, family: f, definition: d}
  - {name: two, family: f, definition: d}
  - {name: none, family: f, definition: d}
"""
IDS = "{type:array,items:{enum:[0,1]},minItems:1,maxItems:1}"
SCHEMA = f"{{type:object,properties:{{strategies:{IDS}}},required:[strategies],additionalProperties:false}}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_checkpoint.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", [row(3, n, [text], seed=f"s{n}") for n, text in enumerate([*TEXTS, TOO_LONG])])


def serve(file: Path, *modes: str) -> Iterator[str]:
    command = [sys.executable, tiny_checkpoint.__file__, "serve", str(file), "tiny", "0", *modes]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as running:  # type: ignore[call-overload]
        yield f"{running.stdout.readline().strip()}/v1"
        running.kill()


@pytest.fixture(scope="module")
def speaking(checkpoint: tuple[Path, Path]) -> Iterator[str]:
    yield from serve(checkpoint[1])


@pytest.fixture(scope="module")
def embedding(checkpoint: tuple[Path, Path]) -> Iterator[str]:
    yield from serve(checkpoint[1], "embeddings")


def words(run: Path, tmp_path: Path, *own: str) -> list[str]:
    rubric = tmp_path / "own.yaml"
    rubric.write_text(RUBRIC)
    return ["analyse", str(run), f"analysis.labels.rubric={rubric}", *own]


def test_a_model_that_is_held_to_the_answers_form_gives_labels_and_a_text_it_cannot_read_is_unknown(
    run: Path, tmp_path: Path, speaking: str
) -> None:
    held = f"analysis.labels.model.extra_body={{response_format:{{type:json_schema,json_schema:{{schema:{SCHEMA}}}}}}}"
    model = [f"analysis.labels.model.urls=['{speaking}']", "analysis.labels.model.model=tiny", held]
    assert cli.main(words(run, tmp_path, *model)) == 0
    labels = [json.loads(line) for line in (run / "attacks" / "labels.jsonl").read_text().splitlines()]
    assert [one["group"] for one in labels] == list(range(len(TEXTS)))
    assert {one["strategy"] for one in labels} <= {"one", "two"}
    ((problem, count),) = found_in(run)["problems"]
    assert (problem.partition(":")[0], count) == ("no answer", 1)


def test_a_model_in_this_process_that_writes_nonsense_names_nothing(
    run: Path, tmp_path: Path, checkpoint: tuple[Path, Path]
) -> None:
    model = f"analysis.labels.model={{kind: transformers, path: {checkpoint[0]}}}"
    assert cli.main(words(run, tmp_path, model)) == 0
    assert found_in(run)["whole"]["mix"] == {"unknown": 1.0}
    assert found_in(run)["labels"].startswith("strategies@2.")


def test_the_similarity_is_that_of_the_same_models_vectors(
    run: Path, checkpoint: tuple[Path, Path], embedding: str
) -> None:
    model = [f"analysis.embedding.urls=['{embedding}']", "analysis.embedding.model=tiny"]
    assert cli.main(["analyse", str(run), *model]) == 0
    found = found_in(run)["whole"]
    assert found["embedded"] == len(TEXTS)  # one is too long
    tokenizer, bare = AutoTokenizer.from_pretrained(checkpoint[0]), AutoModel.from_pretrained(checkpoint[0])
    with torch.no_grad():
        vectors = [bare(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in TEXTS]
    cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(vectors, 2)]
    assert found["similarity"] == pytest.approx(mean(cosines), abs=1e-4)


def test_a_server_without_embeddings_is_told_from_one_that_is_away(
    run: Path, speaking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [f"analysis.embedding.urls=['{speaking}']", "analysis.embedding.model=tiny"]
    assert cli.main(["analyse", str(run), *model]) == 1
    said = capsys.readouterr().err
    assert "does not support embeddings" in said
    assert "of 7 texts 0 are embedded and kept" in said
