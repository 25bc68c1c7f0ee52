"""What is written down stays, whatever happens to the writer; what was asked is known again by what it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_magic.evaluation.fingerprint import fingerprint
from nemo_magic.rollout.response_cache import ResponseCache, cache_key


def test_what_was_added_is_there_for_any_number_of_ranks(tmp_path: Path) -> None:
    ResponseCache(tmp_path, 0).add({"a": ["x", True], "b": None})
    ResponseCache(tmp_path, 1).add({"c": 1})
    later = ResponseCache(tmp_path, 2)
    assert (len(later), later["a"], later["b"], later["c"]) == (3, ["x", True], None, 1)
    assert later.missing(["d", "a", "d", "e"]) == ["d", "e"]
    assert "b" in later


@pytest.mark.parametrize("torn", [b'{"key": "b", "va', b"\xc3", b'{"key": "b", "value": 2}'])
def test_a_line_that_a_kill_cut_off_is_as_if_it_never_was(tmp_path: Path, torn: bytes) -> None:
    ResponseCache(tmp_path, 0).add({"a": 1})
    path = tmp_path / "rank-00000.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert "b" not in ResponseCache(tmp_path, 1)
    mine = ResponseCache(tmp_path, 0)
    assert "b" not in mine
    mine.add({"b": 3})
    assert ResponseCache(tmp_path, 1)["b"] == 3


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    ResponseCache(tmp_path, 0).add({"a": 1})
    path = tmp_path / "rank-00000.jsonl"
    path.write_bytes(b'{"value": 1}\n' + path.read_bytes())
    with pytest.raises(ValueError, match=r"rank-00000.jsonl, line 1, is damaged"):
        ResponseCache(tmp_path, 0)


def test_line_separators_within_a_text_are_part_of_it(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\nfour\r"
    ResponseCache(tmp_path, 0).add({"a": text})
    assert ResponseCache(tmp_path, 1)["a"] == text


def test_equal_questions_have_equal_keys_and_others_have_not() -> None:
    assert cache_key({"a": 1, "b": 2}, [["user", "x"]]) == cache_key({"b": 2, "a": 1}, [["user", "x"]])
    assert cache_key({"a": 1}, [["user", "x"]]) != cache_key({"a": 1}, [["user", "x "]])
    assert cache_key("ab", "c") != cache_key("a", "bc")


def test_weights_are_known_again_wherever_they_are_and_others_are_others(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a").write_text("x")
    first = fingerprint(str(folder))
    assert fingerprint(str(folder.rename(tmp_path / "moved"))) == first
    stamp = (tmp_path / "moved" / "a").stat().st_mtime_ns
    (tmp_path / "moved" / "a").write_text("y")
    os.utime(tmp_path / "moved" / "a", ns=(stamp, stamp + 1))
    assert fingerprint(str(tmp_path / "moved")) != first
    assert fingerprint(None) is None
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fingerprint(str(tmp_path / "none"))
