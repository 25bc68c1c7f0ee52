"""What a cell says: a text, a chat, parts, bytes, wherever it stands; and never Python's spelling of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.data.cells import chat_of, is_unicode, name_of, parsed, text_of
from nemo_magic.data.pools import read_attack_pool, read_chat_pool
from nemo_magic.data.seeds import DataConfig, load_seeds
from nemo_magic.evaluation.load_examples import load_benchmark
from nemo_magic.game.episode import Message
from nemo_magic.judge.check import read_labelled


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


PARTS = [{"type": "text", "text": "wug"}, {"type": "text", "text": "it"}]
TEXTS: list[tuple[Any, str]] = [
    ("wug", "wug"),
    ([user("wug")], "wug"),
    ([{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}, user("wug")], "wug"),
    ([user([{"type": "text", "text": "wug"}])], "wug"),
    (PARTS, "wug\nit"),
    (user("wug"), "wug"),
    ({"type": "text", "text": "wug"}, "wug"),
    (["wug"], "wug"),
    (json.dumps([user("wug")]), "wug"),
    (str([user("wug")]), "wug"),
    (json.dumps(PARTS), "wug\nit"),
    ("wüg ☂".encode(), "wüg ☂"),
    (7, "7"),
]
NO_TEXTS: list[Any] = [
    True,
    {"a": 1},
    ["a", "b"],
    [1, 2],
    [[user("wug")]],
    b"\xff\xfe",
    [{"type": "image_url", "image_url": {"url": "x"}}],
    [user([{"type": "text", "text": "wug"}, {"type": "image_url", "image_url": {"url": "x"}}])],
    [{"role": "assistant", "content": "wug"}],
    [user({"a": 1})],
    "half \ud83d",
]
KEYS = st.sampled_from(["role", "content", "type", "text", "a"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(("cell", "text"), TEXTS)
def test_a_cell_says_what_is_meant(cell: Any, text: str) -> None:
    assert text_of(cell) == text


@pytest.mark.parametrize("cell", NO_TEXTS)
def test_what_is_no_text_is_no_text(cell: Any) -> None:
    assert text_of(cell) is None


@pytest.mark.parametrize("cell", [None, "", "  ", float("nan"), [], b""])
def test_an_empty_cell_is_an_empty_text(cell: Any) -> None:
    assert text_of(cell) == ""


@given(JSON)
def test_no_value_becomes_its_spelling_in_python(cell: Any) -> None:
    text = text_of(cell)
    if text is not None:
        text.encode()
        assert not isinstance(cell, list | dict) or text != str(cell)
    name_of(cell).encode()
    chat = chat_of(cell)
    assert chat is None or all(isinstance(message.content, str) for message in chat)


@pytest.mark.parametrize(
    "cell",
    ["(" * 5000, "[" * 100_000, "{" * 100_000, "-" * 100_000 + "1", "1+" * 50_000 + "1", "9" * 5000, "'\\ud83d'",
     "{[]: 1}", "\x00", "b'\\d'", "{'a': 1", "0" * (1 << 20), "__import__('os')"],
)  # fmt: skip
def test_a_hostile_cell_is_itself(cell: str) -> None:
    value = parsed(cell)
    assert value == cell or isinstance(value, int | bytes)
    assert text_of(cell) == cell.strip()


def test_a_cell_that_is_the_spelling_of_an_object_is_that_object() -> None:
    assert parsed("{'__type__': 'Prn', 'x': None}") == {"__type__": "Prn", "x": None}
    assert parsed('[{"a": null}]') == [{"a": None}]
    assert not is_unicode({"a": ["\ud83d"]})


@pytest.mark.parametrize(("cell", "text"), TEXTS)
def test_every_reader_reads_the_same_text(cell: Any, text: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": cell, "label": "harmful", "rewrite": cell, "reasoning": cell, "response": cell, "refusal": "yes"}
        | {"BehaviorID": "b", "test_case": cell, "method": "m", "strategy": "1"}
        for _ in range(2)
    ]
    path = tmp_path / "rows.jsonl"
    if isinstance(cell, bytes):
        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seeds = load_seeds(DataConfig(train_files=[str(path)], validation_fraction=1.0))
    assert [seed.text for seed in seeds.validation] == [text]
    assert [example.turns for example in load_benchmark("seeds", path).examples] == [(text,)] * 2
    assert [one.turns for one in load_benchmark("harmbench_adversarial", path).examples] == [(text,)] * 2
    attacks, _ = read_attack_pool(str(path))
    assert {(row.seed.text, row.rewrite, row.reasoning) for row in attacks} == {(text, text, text)}
    labelled, _ = read_labelled(path)
    assert {one.item.conversation[0].content for one in labelled} == {text}


@pytest.mark.parametrize("cell", NO_TEXTS[:-1])
def test_every_reader_drops_and_counts_what_is_no_text(cell: Any, tmp_path: Path) -> None:
    good = {"prompt": "wug", "label": "harmful", "rewrite": "w", "reasoning": "r", "response": "r", "refusal": "yes"}
    good |= {"BehaviorID": "b", "test_case": "wug", "method": "m"}
    path, reports = tmp_path / "rows.parquet", {}
    bad = good | {"prompt": cell, "test_case": cell}
    if isinstance(cell, bytes):
        pytest.importorskip("pyarrow")
        pandas.DataFrame(
            [bad, {k: v.encode() if k in ("prompt", "test_case") else v for k, v in good.items()}]
        ).to_parquet(path)
    else:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (bad, good)))
    reports["seeds"] = load_seeds(DataConfig(train_files=[str(path)], validation_fraction=1.0)).report
    reports["evaluation"] = load_benchmark("seeds", path).report
    reports["cases"] = load_benchmark("harmbench_adversarial", path).report
    reports["attacks"] = read_attack_pool(str(path))[1]
    reports["chats"] = read_chat_pool(str(path))[1]
    reports["labelled"] = read_labelled(path)[1]
    for name, report in reports.items():
        assert report.kept == 1, name
        (reason,) = report.dropped
        assert reason.endswith(("is no text", "prompt does not end with a user's message")), (name, reason)


def test_earlier_messages_that_a_seed_cannot_hold_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    long = [{"role": "system", "content": "s"}, user("wug")]
    path.write_text("".join(json.dumps({"prompt": one, "label": 1}) + "\n" for one in ([user("glim")], long)))
    report = load_seeds(DataConfig(train_files=[str(path)], validation_fraction=1.0)).report
    assert report.changed == {"chats of which the last user message alone is read": 1}
    assert "2 rows read, 2 kept; chats of which" in str(report)


def test_alpacas_input_is_a_part_of_its_instruction(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    rows = [
        {"instruction": "norp it", "input": "a wug", "output": "ok", "label": "benign"},
        {"instruction": "norp", "input": "", "output": "ok", "label": "benign"},
        {"instruction": "norp", "input": {"a": 1}, "output": "ok", "label": "benign"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats, report = read_chat_pool(str(path))
    assert [row.messages for row in chats] == [(Message("user", "norp it\n\na wug"),), (Message("user", "norp"),)]
    assert report.changed == {"rows whose input is joined to their instruction": 1}
    assert report.dropped == {"input is no text": 1}
    assert [one.turns for one in load_benchmark("seeds", path).examples] == [("norp it\n\na wug",), ("norp",)]


TEXT = {"type": "text"}
CHAT = [user("p"), {"role": "assistant", "content": "r"}]
ROW = ((Message("user", "p"),), "r")


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"messages": CHAT}, ROW),
        ({"messages": json.dumps(CHAT)}, ROW),
        ({"messages": str(CHAT)}, ROW),
        ({"messages": [user([TEXT | {"text": "p"}]), {"role": "assistant", "content": [TEXT | {"text": "r"}]}]}, ROW),
        ({"messages": None}, None),
        ({"messages": "hello"}, None),
        ({"messages": 3}, None),
        ({"messages": ["p", "r"]}, None),
        ({"messages": [user("p"), None]}, None),
        ({"messages": [user(None), {"role": "assistant", "content": "r"}]}, None),
        ({"messages": [{"role": None, "content": "p"}, {"role": "assistant", "content": "r"}]}, None),
        ({"messages": {"role": "user"}}, None),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ROW),
        ({"prompt": CHAT[:1], "completion": "r"}, ROW),
        ({"prompt": "p", "completion": CHAT[1:]}, ROW),
        ({"prompt": CHAT[:1], "completion": []}, None),
        ({"prompt": "p", "completion": {"a": 1}}, None),
        ({"prompt": None, "completion": "r"}, None),
    ],
)  # fmt: skip
def test_chat_pools_hold_chats_in_every_spelling(row: dict[str, Any], read: Any, tmp_path: Path) -> None:
    whole = dict(
        zip(row, ([user("x"), {"role": "assistant", "content": "y"}],) if "messages" in row else "xy", strict=True)
    )
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (whole, row)))
    rows, report = read_chat_pool(str(path))
    assert [(one.messages, one.response) for one in rows[1:]] == ([] if read is None else [read])
    assert report.dropped.total() == (read is None)
