"""``nemo-magic analyse``, whole: a run's folder in, labels, figures and tables out; killed and started again."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_magic import cli
from nemo_magic.judge.models.transformers import TransformersModel
from nemo_magic.report.page import render
from nemo_magic.report.run_folder import RunFolder
from tests.actors.chat_endpoint import Endpoint, free_url
from tests.analysis.analysing import Models, found_in, start
from tests.analysis.made_up_attacks import pool, row, write_run

ANSWERS = {
    "wug": '{"strategies": [0]}',
    "dax": '{"strategies": [18, 0]}',
    "zup": '{"strategies": [19]}',
    "odd": "I think it is 0 and 18.",
    "many": '{"strategies": [99]}',
}
CHUNK = 3


def answer(attack: str) -> str:
    return ANSWERS[attack.split()[0]]


@pytest.fixture
def models() -> Iterator[Models]:
    server = Models(answer)
    yield server
    server.close()


@pytest.fixture
def real_run(tmp_path: Path) -> Path:
    """A run of real models whose attacker went from single strategies to hybrids; one attack is there twice."""
    early = [
        row(1, group, [f"{word} {group}"], seed=f"seed {group}") for group, word in enumerate(["wug"] * 6 + ["zup"] * 2)
    ]
    late = [
        row(4, group, [f"{word} {group}"], seed=f"seed {group}")
        for group, word in enumerate(["dax"] * 5 + ["wug", "odd", "many"])
    ]
    weights = tmp_path / "sft" / "weights"
    weights.mkdir(parents=True)
    path = pool(tmp_path / "pool.jsonl", ["0", "1", "19", "0_13"])
    (tmp_path / "sft" / "config.yaml").write_text(json.dumps({"sft": {"role": "attacker", "pool": str(path)}}))
    return write_run(tmp_path / "run", [*early, *late], str(weights))


def test_a_model_names_the_strategies_and_the_figures_are_those_of_its_answers(
    real_run: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["analyse", str(real_run), *models.words, *models.embedding_words, "analysis.bins=2"]) == 0
    found = found_in(real_run)
    early, late = found["phases"]
    assert early["mix"] == {"role-play": 0.75, "none": 0.25}
    assert (early["hybrid_share"], early["novel_share"], early["unknown_share"]) == (0.0, 0.0, 0.0)
    assert late["mix"] == {"role-play + translation": 0.625, "unknown": 0.25, "role-play": 0.125}
    assert (late["hybrid_share"], late["novel_share"], late["unknown_share"]) == (0.833333, 0.833333, 0.25)
    assert [one["hybrid_share"] for one in found["bins"]] == [0.0, 0.833333]
    assert found["whole"]["embedded"] == 16
    assert 0 < found["whole"]["similarity"] < 1
    assert dict(found["problems"]) == {
        "not understood: the guard's text is no JSON": 1,
        "not understood: the model names a strategy outside 0 to 19": 1,
    }
    assert found["pool"]["combinations"] == 4
    with (real_run / "attacks" / "strategies.csv").open() as file:
        table = {one["strategy"]: (one["attacks"], one["in_pool"]) for one in csv.DictReader(file)}
    assert table == {
        "role-play": ("7", "1"),
        "role-play + translation": ("5", "0"),
        "none": ("2", "1"),
        "unknown": ("2", ""),
    }
    assert len((real_run / "attacks" / "labels.jsonl").read_text().splitlines()) == 14
    said = capsys.readouterr().out
    assert "16 attacks labelled by strategies@2." in said
    assert "1 × not understood: the guard's text is no JSON" in said


def test_the_report_shows_the_labels_of_a_real_run_and_says_what_is_missing_without(
    real_run: Path, models: Models
) -> None:
    def embedded(name: str) -> Any:
        found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
        assert found is not None
        return json.loads(found[1])

    page = render([RunFolder(real_run)])
    assert "outside the sandbox, nemo-magic analyse has a model name them" in page
    assert {row["strategy"] for row in embedded("rows")} == {None}
    assert cli.main(["analyse", str(real_run), *models.words]) == 0
    page = render([RunFolder(real_run)])
    mix = embedded("figures")["strategies-0"]["data"]
    assert {trace["name"]: trace["y"] for trace in mix}["role-play + translation"] == [0.0, 62.5]
    shown = [row["strategy"] for row in embedded("rows")]
    assert shown == ["role-play"] * 6 + ["none"] * 2 + ["role-play + translation"] * 5 + ["role-play", None, None]
    assert "place" not in embedded("rows")[0]
    assert "as strategies@2." in page


def test_a_labelling_model_is_held_against_the_pool_whose_strategies_are_known(
    real_run: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("wug", "0"), ("dax", "0_18"), ("dax", "18"), ("zup", "19"), ("wug", "3"), ("odd", "0"), ("wug", "?")]
    path = real_run.parent / "known.jsonl"
    path.write_text(
        "".join(
            json.dumps({"seed": "s", "label": "harmful", "strategy": ids, "reasoning": "r", "rewrite": word}) + "\n"
            for word, ids in rows
        )
    )
    words = [*models.words, f"analysis.pool={path}", "analysis.labels.check=100"]
    assert cli.main(["analyse", str(real_run), *words]) == 0
    # Of six that can be read three are named alike, one by half, one otherwise, and one not at all.
    assert found_in(real_run)["check"] == {
        "rows": 6, "exact": 0.5, "overlap": pytest.approx(3.5 / 6, abs=1e-6), "unknown": pytest.approx(1 / 6, abs=1e-6)
    }  # fmt: skip
    assert "Of 6 rows of the pool it names 50.0 % as the pool does" in capsys.readouterr().out
    assert found_in(real_run)["attacks"] == 16
    assert "Of 6 rows of the attack pool, whose strategies are known, it names 50.0\u00a0% alike." in render(
        [RunFolder(real_run)]
    )


def test_nothing_is_asked_twice_until_something_is_another_question(real_run: Path, models: Models) -> None:
    words = ["analyse", str(real_run), *models.words, *models.embedding_words]
    assert cli.main(words) == 0
    first = found_in(real_run)
    assert (len(models.attacks), len(set(models.attacks))) == (15, 15)
    assert len(models.texts) == len(set(models.texts))
    asked, embedded = len(models.attacks), len(models.texts)
    models.close()  # not even whether it is there
    assert cli.main(words) == 0
    assert found_in(real_run) == first
    again = Models(answer)
    try:
        assert cli.main(["analyse", str(real_run), *again.words, "analysis.labels.model.revision=2"]) == 0
        assert (asked, embedded, len(again.attacks)) == (15, 15, 15)
    finally:
        again.close()


@pytest.mark.process
def test_an_analysis_that_is_killed_goes_on_and_pays_for_no_more_than_was_under_way(
    real_run: Path, models: Models
) -> None:
    words = [*models.words, f"analysis.labels.chunk_size={CHUNK}"]
    fatal = 8
    running = start(real_run, *words)
    models.before = lambda number: os.kill(running.pid, signal.SIGKILL) if number == fatal else None
    assert running.wait(timeout=120) == -signal.SIGKILL
    assert not (real_run / "attacks" / "attacks.json").exists()
    models.before = lambda number: None
    assert cli.main(["analyse", str(real_run), *words]) == 0
    again = len(models.attacks) - len(set(models.attacks))
    assert 0 < again <= CHUNK
    assert len(set(models.attacks)) == 15
    assert found_in(real_run)["attacks"] == 16


def test_a_server_that_is_away_ends_it_with_what_it_knows_and_a_wrong_one_is_named(
    real_run: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [f"analysis.labels.model.urls=[{free_url()}]", "analysis.labels.model.model=tiny"]
    assert cli.main(["analyse", str(real_run), *gone, "analysis.labels.model.start_timeout=0.2"]) == 1
    said = capsys.readouterr().err
    assert "the labels of 0 of 15 different attacks are written down, and the same command goes on from there" in said
    assert cli.main(["analyse", str(real_run), models.words[0], "analysis.labels.model.model=other"]) == 1
    assert "analysis.labels.model.model='other'" in capsys.readouterr().err
    assert models.attacks == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "reply",
    [
        (200, {"model": "tiny", "data": []}),
        (200, {"model": "tiny", "data": [{"index": 0, "embedding": [1.0]}] * 16}),
        (200, {"model": "tiny", "data": [{"index": i, "embedding": [0.0, 0.0]} for i in range(16)]}),
        (200, {"model": "tiny", "data": [{"index": i, "embedding": [1.0] * (1 + i % 2)} for i in range(16)]}),
        (200, b'{"model": "tiny", "data": [{"index": 0, "embedding": [NaN]}]}'),
        (200, b"<html>"),
    ],
)
def test_what_is_no_embedding_of_every_text_is_none(
    real_run: Path, reply: tuple[int, object], capsys: pytest.CaptureFixture[str]
) -> None:
    server = Endpoint(lambda body: reply)
    try:
        words = [f"analysis.embedding.urls=[{server.url}]", "analysis.embedding.model=tiny"]
        patience = ["analysis.embedding.protocol_retries=1", "analysis.embedding.backoff_initial=0.01"]
        assert cli.main(["analyse", str(real_run), *words, *patience]) == 1
    finally:
        server.close()
    assert "no embeddings after analysis.embedding.protocol_retries" in capsys.readouterr().err
    assert not (real_run / "attacks" / "attacks.json").exists()


def test_a_text_that_is_too_long_to_embed_is_left_out_and_the_others_are_not(real_run: Path) -> None:
    def reply(body: dict[str, list[str]]) -> tuple[int, object]:
        if "dax 3" in body["input"]:
            return 400, {"error": {"message": "maximum context length is 2 tokens"}}
        data = [{"index": i, "embedding": [1.0, float(len(text))]} for i, text in enumerate(body["input"])]
        return 200, {"model": "tiny", "data": data}

    server = Endpoint(reply)
    try:
        words = [f"analysis.embedding.urls=[{server.url}]", "analysis.embedding.model=tiny"]
        assert cli.main(["analyse", str(real_run), *words]) == 0
    finally:
        server.close()
    assert found_in(real_run)["whole"]["embedded"] == 15


def test_without_a_model_to_ask_strategies_are_unknown_and_the_rest_is_measured(
    real_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["analyse", str(real_run), "analysis.pool=null"]) == 0
    found = found_in(real_run)
    assert found["labels"] is None
    assert (found["whole"]["unknown_share"], found["whole"]["hybrid_share"], found["whole"]["intent_lost"]) == (
        1,
        None,
        0,
    )
    assert found["whole"]["self_bleu"] is not None
    assert (real_run / "attacks" / "labels.jsonl").read_text() == ""
    assert "16 × nobody was asked (analysis.labels.model)" in capsys.readouterr().out


@pytest.mark.process
def test_what_was_found_can_be_shown_in_the_runs_own_wandb_run(
    real_run: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    (real_run / "wandb_id.txt").write_text("abc123\n")
    assert cli.main(["analyse", str(real_run), "--wandb", *models.words]) == 0
    (folder,) = real_run.glob("wandb/offline-run-*-abc123")
    (table,) = folder.glob("files/media/table/report/strategies_*.table.json")
    shown = {row[0]: row[1] for row in json.loads(table.read_text())["data"]}
    assert shown == {"role-play": 7, "role-play + translation": 5, "none": 2, "unknown": 2}
    assert list(folder.glob("files/media/table/report/strategy_mix_*.table.json"))


def test_every_conversation_that_shares_an_attack_has_its_label(tmp_path: Path, models: Models) -> None:
    run = write_run(tmp_path / "run", [row(1, 0, ["wug 0"], sample=sample) for sample in range(3)])
    assert cli.main(["analyse", str(run), *models.words]) == 0
    assert found_in(run)["attacks"] == len(models.attacks) == 1
    labels = [json.loads(line) for line in (run / "attacks" / "labels.jsonl").read_text().splitlines()]
    assert [(one["sample"], one["strategy"]) for one in labels] == [(n, "role-play") for n in range(3)]


def test_a_labelling_model_that_cannot_be_loaded_is_named_by_its_key(
    real_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(model: TransformersModel) -> None:
        raise OSError("no weights here")

    monkeypatch.setattr(TransformersModel, "start", fail)
    assert cli.main(["analyse", str(real_run), "analysis.labels.model={kind: transformers, path: none}"]) == 1
    assert "analysis.labels.model cannot be loaded: no weights here" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_may_hold_separators_of_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [row(3, 0, ["wug\u2028dax\x85zup"])])
    assert cli.main(["analyse", str(run)]) == 0
    assert found_in(run)["attacks"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("analysis.bin=3", "unknown key analysis.bin; did you mean analysis.bins?"),
        ("analysis.bins=0", "analysis.bins=0 must be at least 1"),
        ("analysis.self_bleu.size=1", "analysis.self_bleu.size=1 must be at least 2"),
        ("analysis.self_bleu.tokenize=x", "analysis.self_bleu.tokenize='x' must be one of: 13a"),
        ("analysis.embedding.urls=[http://e:1/v1]", "analysis.embedding.model has to be given"),
        ("analysis.embedding.urls=[host]", "analysis.embedding.urls='host' must be a base url"),
        (
            "analysis.embedding.token_env=NO_SUCH",
            "analysis.embedding.token_env=NO_SUCH: this environment variable is unset",
        ),
        ("analysis.labels.rubric=none", "analysis.labels.rubric='none'"),
        ("analysis.labels.model={kind: wug}", "analysis.labels.model.kind='wug' must be one of"),
        ("analysis.labels.model={urls: [x], model: tiny}", "analysis.labels.model.urls='x' must be a base url"),
        ("analysis.labels.model={urls: [http://l:1/v1], model: tiny, wug: 1}", "unexpected keyword argument 'wug'"),
        ("analysis.labels.check=-1", "analysis.labels.check=-1 must be at least 0"),
        ("analysis.labels.chunk_size=0", "analysis.labels.chunk_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(
    real_run: Path, word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["analyse", str(real_run), word]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyse", str(tmp_path)]) == 2
    assert f"{tmp_path / 'config.yaml'}: no such file" in capsys.readouterr().err


def test_a_pool_that_was_named_and_is_none_is_an_error(real_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyse", str(real_run), "analysis.pool=/no/such.jsonl"]) == 1
    assert "/no/such.jsonl does not exist" in capsys.readouterr().err
