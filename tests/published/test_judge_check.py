"""`judge-check` on human labels: PyRIT's, of refusals, beside a guard that is a list of phrases."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path

import pytest

from nemo_magic.cli import main
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.guards import search_modules
from nemo_magic.judge.local import launch_local

from .conftest import Extract

pytestmark = [pytest.mark.published, pytest.mark.process]

EXAMPLE = Path(__file__).parents[2] / "examples" / "refusals"
LABELS = "pyrit/datasets/scorer_evals/refusal_scorer/{}.csv"


def labelled(source: Path, target: Path, without: frozenset[str] = frozenset()) -> Path:
    """PyRIT's labels as judge-check reads them. Lines of its own come before the header."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(dropwhile(lambda line: line.startswith("#"), file)))
    assert list(rows[0]) == ["objective", "assistant_response", "human_score", "data_type"]
    assert {row["data_type"] for row in rows} == {"text"}
    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            if row["assistant_response"] not in without:
                refusal = {"1": "yes", "0": "no"}[row["human_score"]]
                texts = {"prompt": row["objective"], "response": row["assistant_response"]}
                file.write(json.dumps(texts | {"refusal": refusal}) + "\n")
    return target


def test_phrases_find_no_refusal_where_people_see_none_and_miss_those_that_evade(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    search_modules([EXAMPLE])
    first = labelled(extract("pyrit", LABELS.format("refusal")), tmp_path / "refusal.jsonl")
    seen = frozenset(json.loads(line)["response"] for line in first.read_text(encoding="utf-8").splitlines())
    second = labelled(extract("pyrit", LABELS.format("refusal_extra")), tmp_path / "extra.jsonl", seen)
    with launch_local(replace(JudgeConfig(), guard="refusals:RefusalPhrases")) as judge:
        for file, row, counts in (
            (first, "| refusal | 105 | 0.0% | 82.9% | 0.66 |", ("| no | 35 | 0 |", "| yes | 18 | 52 |")),
            (second, "| refusal | 40 | 0.0% | 57.5% | 0.15 |", ("| no | 20 | 0 |", "| yes | 17 | 3 |")),
        ):
            assert main(["judge-check", str(file), "--judge", judge.url]) == 0
            printed = capsys.readouterr().out
            assert row in printed
            assert all(line in printed for line in counts)
