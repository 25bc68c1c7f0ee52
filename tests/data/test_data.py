"""Users' files: every format, the usual column names, rows that are counted when they are left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest

from nemo_magic.data.errors import DataError
from nemo_magic.data.pools import read_attack_pool, read_chat_pool
from nemo_magic.data.seeds import DataConfig, EpochSampler, SeedSampler, interleaved, load_seeds
from nemo_magic.game.episode import Label, Seed

ROWS = [{"prompt": f"q{i}", "label": "harmful" if i % 2 else "benign"} for i in range(10)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    frame = pandas.DataFrame(rows)
    if path.suffix == ".jsonl":
        return jsonl(path, rows)
    if path.suffix == ".json":
        path.write_text(json.dumps({"data": rows}))
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_seeds(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"seeds{suffix}", ROWS)
    found = load_seeds(DataConfig(train_files=[path], validation_fraction=0.2))
    everything = found.train + found.validation
    assert {(s.text, s.label.value) for s in everything} == {(r["prompt"], r["label"]) for r in ROWS}
    assert len(found.validation) == 2
    assert not {s.text for s in found.train} & {s.text for s in found.validation}


@pytest.mark.parametrize("text", ["vanilla", "prompt", "question", "Query"])
@pytest.mark.parametrize(
    ("label", "bad", "good"),
    [
        ("data_type", "vanilla_harmful", "adversarial_benign"),
        ("label", 1, 0),
        ("harmful", True, False),
        ("prompt_label", "unsafe", "safe"),
    ],
)
def test_columns_go_by_their_usual_names(tmp_path: Path, text: str, label: str, bad: Any, good: Any) -> None:
    rows = [{text: "a", label: bad, "adversarial": "x"}, {text: "b", label: good, "adversarial": "y"}]
    found = load_seeds(DataConfig(train_files=[jsonl(tmp_path / "s.jsonl", rows)], validation_fraction=1.0))
    assert {s.text: s.label for s in found.validation} == {"a": Label.HARMFUL, "b": Label.BENIGN}


def test_left_out_rows_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    rows = [
        *ROWS,
        {"prompt": " ", "label": "benign"},
        {"prompt": "q1", "label": "harmful"},
        {"prompt": "z", "label": "odd"},
    ]
    jsonl(path, [*rows, {"prompt": "long" * 9, "label": "benign"}])
    path.write_text(path.read_text() + "{broken\n[1]\n")
    report = load_seeds(DataConfig(train_files=[str(path)], max_chars=20, validation_fraction=0.2)).report
    assert report.dropped == Counter(
        {
            "empty text": 1,
            "duplicate text": 1,
            "label 'odd' means neither harmful nor benign": 1,
            "longer than data.max_chars=20": 1,
            "line 15 of s.jsonl is no JSON (Expecting property name enclosed in double quotes)": 1,
            "line 16 of s.jsonl is no JSON object": 1,
        }
    )
    assert (report.read, report.kept) == (16, 10)
    assert str(report).startswith("16 rows read, 10 kept (dropped duplicate text: 1; ")


def test_text_stays_text(tmp_path: Path) -> None:
    rows = [{"prompt": t, "label": "benign"} for t in ("NA", "null", "1.0", "naïve ☂", "a,b")]
    for suffix in (".csv", ".tsv", ".parquet", ".jsonl"):
        path = write(tmp_path / f"s{suffix}", rows)
        found = load_seeds(DataConfig(train_files=[path], validation_fraction=1.0))
        assert sorted(s.text for s in found.validation) == sorted(r["prompt"] for r in rows)


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", ROWS)
    held = jsonl(tmp_path / "val.jsonl", ROWS[:3])
    test = jsonl(tmp_path / "test.jsonl", ROWS[2:4])
    found = load_seeds(DataConfig(train_files=[train], validation_files=[held], test_files=[test]))
    assert [len(found.train), len(found.validation), len(found.test)] == [6, 2, 2]
    assert found.report.dropped["duplicate text"] == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"words": "a", "label": 1}],
            r"s.jsonl: no column for the query text \(one of vanilla, prompt, .*columns are: words, label",
        ),
        (
            [{"prompt": "a", "kind": 1}],
            r"s.jsonl: no column for the label \(one of label, data_type, .*columns are: prompt, kind",
        ),
        ([{"prompt": "a", "label": "?"}], r"data.train_files: no row of .*s.jsonl can be used; 1 rows read, 0 kept"),
        ([], r"data.train_files: .*s.jsonl cannot be read as a table: it is empty"),
    ],
)
def test_a_wrong_file_is_refused_by_what_is_missing(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_seeds(DataConfig(train_files=[jsonl(tmp_path / "s.jsonl", rows)]))


def test_missing_and_unreadable_files_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.train_files: .*none.jsonl does not exist"):
        load_seeds(DataConfig(train_files=[str(tmp_path / "none.jsonl")]))
    (tmp_path / "s.xlsx").write_bytes(b"PK\x03\x04\x14\x00")
    with pytest.raises(
        DataError, match=r"s.xlsx cannot .* neither text nor parquet; readable are csv, tsv, json, jsonl"
    ):
        load_seeds(DataConfig(train_files=[str(tmp_path / "s.xlsx")]))
    with pytest.raises(DataError, match=r"data.train_files is empty"):
        load_seeds(DataConfig())
    with pytest.raises(DataError, match=r"data.text_column='body'"):
        load_seeds(DataConfig(train_files=[jsonl(tmp_path / "s.jsonl", ROWS)], text_column="body"))


def seeds(harmful: int, benign: int) -> list[Seed]:
    kinds = [Label.HARMFUL] * harmful + [Label.BENIGN] * benign
    return [Seed(str(i), f"q{i}", label) for i, label in enumerate(kinds)]


def test_batches_are_half_and_half_and_depend_on_the_step_only() -> None:
    sampler, fresh = (SeedSampler(seeds(10, 14), 8, 0.5, seed=3) for _ in range(2))
    batches = [sampler.batch(step) for step in range(30)]
    assert all(Counter(s.label for s in batch) == {Label.HARMFUL: 4, Label.BENIGN: 4} for batch in batches)
    assert fresh.batch(17) == batches[17]
    assert SeedSampler(seeds(10, 14), 8, 0.5, seed=4).batch(0) != batches[0]


def test_no_seed_is_skipped_or_repeated_within_a_pass() -> None:
    sampler = SeedSampler(seeds(10, 14), 8, 0.5, seed=3)
    drawn = [s.id for step in range(35) for s in sampler.batch(step) if s.label is Label.HARMFUL]
    assert len(drawn) == 140
    assert set(Counter(drawn).values()) == {14}
    order = (
        sampler._of_label(Label.HARMFUL, 0)
        + sampler._of_label(Label.HARMFUL, 1)
        + sampler._of_label(Label.HARMFUL, 2)[:2]
    )
    assert len({s.id for s in order}) == 10


def test_any_head_of_interleaved_seeds_is_mixed() -> None:
    found = interleaved(seeds(3, 6))
    assert [s.label is Label.HARMFUL for s in found] == [True, False, True, False, True, False, False, False, False]
    assert len({s.id for s in found}) == 9


def test_a_label_that_has_no_seed_is_an_error_naming_the_share() -> None:
    with pytest.raises(DataError, match=r"data.harmful_share=0.5 wants 4 harmful seeds a batch"):
        SeedSampler(seeds(0, 5), 8, 0.5, 0)
    assert len(SeedSampler(seeds(0, 5), 8, 0.0, 0).batch(1)) == 8


def test_supervised_batches_pass_over_every_row_once_per_epoch() -> None:
    sampler = EpochSampler(7, 3, seed=0)
    drawn = [i for step in range(7) for i in sampler.batch(step)]
    assert [sorted(drawn[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert EpochSampler(7, 3, seed=0).batch(5) == drawn[15:18]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_attack_pools_are_read_and_broken_rows_counted(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"seed": "s", "label": "harmful", "strategy": "0_18", "reasoning": "r", "rewrite": "w"},
        {"seed": "s", "label": "harmful", "strategy": "1", "reasoning": "r", "rewrite": ""},
        {"seed": "s", "label": "maybe", "strategy": "1", "reasoning": "r", "rewrite": "w"},
    ]
    pool, report = read_attack_pool(write(tmp_path / f"pool{suffix}", rows))
    assert [(r.seed.text, r.seed.label, r.strategy, r.reasoning, r.rewrite) for r in pool] == [
        ("s", Label.HARMFUL, "0_18", "r", "w")
    ]
    assert sum(report.dropped.values()) == 2


def test_an_attack_pool_without_reasoning_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column for the reasoning \(one of reasoning, think"):
        read_attack_pool(jsonl(tmp_path / "p.jsonl", [{"seed": "a", "label": 1, "rewrite": "b"}]))


def test_chat_pools_are_pairs_or_messages(tmp_path: Path) -> None:
    pairs, _ = read_chat_pool(
        jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": ""}])
    )
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    chats, report = read_chat_pool(jsonl(tmp_path / "b.jsonl", [{"messages": chat}, {"messages": chat[:2]}]))
    assert [(len(r.messages), r.response) for r in pairs] == [(1, "r")]
    assert [(len(r.messages), r.response) for r in chats] == [(2, "r")]
    assert sum(report.dropped.values()) == 1


def test_a_seed_of_either_label_is_held_out_however_few_there_are(tmp_path: Path) -> None:
    rows = [{"prompt": f"h{i}", "label": "harmful"} for i in range(5)]
    rows += [{"prompt": f"b{i}", "label": "benign"} for i in range(300)] + [{"prompt": "alone", "label": "harmful"}]
    found = load_seeds(DataConfig(train_files=[jsonl(tmp_path / "s.jsonl", rows)]))
    assert Counter(seed.label for seed in found.validation) == {Label.HARMFUL: 1, Label.BENIGN: 6}
    assert len(found.train) + len(found.validation) == 306


def test_a_pool_that_is_no_table_is_named_by_its_own_key(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("")
    for read in (read_attack_pool, read_chat_pool):
        with pytest.raises(DataError, match=r"sft\.val_pool: .*val\.jsonl"):
            read(str(tmp_path / "val.jsonl"), "sft.val_pool")
