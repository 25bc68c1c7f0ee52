"""How far a judge can be trusted: agreement, confusion, unknown share, κ."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from nemo_magic.cli import main
from nemo_magic.data.errors import DataError
from nemo_magic.judge.check import (
    Agreement,
    against_each_other,
    against_labels,
    check,
    read_labelled,
    summary,
)
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.protocol import Ask

ROWS = [
    {"prompt": "a question", "response": "bad one", "response_safety": "unsafe", "refusal": "no"},
    {"prompt": "a question", "response": "sorry", "response_safety": "safe", "refusal": "yes"},
    {"prompt": "a question", "response": "fine", "response_safety": "unsafe", "refusal": ""},
    {"prompt": "a question", "response": "crash", "response_safety": "safe", "refusal": "no"},
    {"prompt": "bad question", "response": "", "prompt_safety": "Unsafe"},
]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.mark.process
def test_a_judge_is_measured_field_by_field(labelled: Path, judge, quick) -> None:  # type: ignore[no-untyped-def]
    rows, report = read_labelled(labelled)
    assert report.kept == len(rows) == 5
    with JudgeClient(replace(quick.at(judge.url), batch_size=2)) as client:
        checked = check(client, rows, batch=2, parallel=2)
    assert checked.guard == "keyword@1"
    assert len(checked.seconds) == 3
    found = against_labels(rows, checked)
    assert found[Ask.RESPONSE_SAFETY].pairs == Counter(
        {("unsafe", "unsafe"): 1, ("safe", "safe"): 1, ("unsafe", "safe"): 1, ("safe", "unknown"): 1}
    )
    assert found[Ask.RESPONSE_SAFETY].unknown_share == 0.25
    assert found[Ask.RESPONSE_SAFETY].agreement == pytest.approx(2 / 3)
    assert found[Ask.PROMPT_SAFETY].pairs == Counter({("unsafe", "unsafe"): 1})
    assert found[Ask.REFUSAL].total == 3
    text = summary(rows, [checked, checked])
    assert "| response_safety | 4 | 25.0% | 66.7% |" in text
    assert "| response_safety: label ↓ | safe | unknown | unsafe |" in text
    assert "## keyword@1 beside keyword@1" in text
    assert against_each_other(rows, checked, checked)[Ask.RESPONSE_SAFETY].agreement == 1


def test_kappa_is_cohens() -> None:
    draw = random.Random(0)
    for _ in range(50):
        values = ["safe", "unsafe", "controversial"][: draw.randrange(2, 4)]
        pairs = [(draw.choice(values), draw.choice(values)) for _ in range(draw.randrange(20, 60))]
        expected = cohen_kappa_score(*zip(*pairs, strict=True))
        assert Agreement(Counter(pairs)).kappa == pytest.approx(expected)
    assert Agreement(Counter({("safe", "safe"): 3})).kappa is None
    assert Agreement(Counter({("safe", "unknown"): 3})).kappa is None
    assert Agreement(Counter({("safe", "unknown"): 3})).agreement is None


def test_rows_that_say_nothing_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    odd = [
        {"prompt": "", "refusal": "yes"}, {"prompt": "p", "refusal": ""}, {"prompt": "p", "refusal": "no"},
        {"prompt": "p", "response": "r", "refusal": "maybe"}, {"prompt": "p", "response": "r", "refusal": "no"},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, odd)))
    rows, report = read_labelled(path)
    assert len(rows) == 1
    assert report.dropped.total() == 4
    assert report.dropped["empty prompt"] == report.dropped["no label"] == 1
    assert report.dropped["no such label: refusal is 'maybe'"] == 1
    assert any("does not end with a response" in reason for reason in report.dropped)
    path.write_text(json.dumps({"prompt": "p", "verdict": "no"}))
    with pytest.raises(DataError, match="no column of labels"):
        read_labelled(path)


@pytest.mark.process
def test_the_command_prints_what_was_found(  # type: ignore[no-untyped-def]
    labelled: Path, judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge-check", str(labelled), "--judge", judge.url, "--judge", judge.url]) == 0
    said = capsys.readouterr().out
    assert "5 rows read, 5 kept" in said
    assert "## keyword@1 beside keyword@1" in said
    assert main(["judge-check", str(tmp_path / "none.csv"), "--judge", judge.url]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["judge-check", str(labelled), "--judge", judge.url, "--token-env", "NO_SUCH_VARIABLE"]) == 2
    assert "NO_SUCH_VARIABLE" in capsys.readouterr().err
