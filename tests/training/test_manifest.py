from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_magic.runtime.manifest import checksums_of, find_corruption, write_manifest


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name in ("a/one", "a/two", "three"):
        (tmp_path / name).write_text(name * 100)
    write_manifest(tmp_path, checksums_of(tmp_path, [tmp_path / "three"]), {"step": 4})
    return tmp_path


def test_what_is_whole_has_no_damage(sealed: Path) -> None:
    assert find_corruption(sealed) == []
    assert set(json.loads((sealed / "checksums.json").read_text())) == {"a/one", "a/two", "three"}
    assert json.loads((sealed / "COMMITTED").read_text())["step"] == 4


def test_each_kind_of_damage_is_named(sealed: Path) -> None:
    (sealed / "a/one").unlink()
    (sealed / "a/two").write_text("short")
    (sealed / "three").write_text("THREE" * 100)
    assert find_corruption(sealed) == [
        "a/one is missing", "a/two has 5 of 500 bytes", "three does not match its checksum",
    ]  # fmt: skip


def test_ranks_that_share_the_reading_find_everything_between_them(sealed: Path) -> None:
    (sealed / "a/two").write_text("short")
    assert sorted(
        find_corruption(sealed, slice(0, None, 2)) + find_corruption(sealed, slice(1, None, 2))
    ) == find_corruption(sealed)


def test_checksums_that_were_exchanged_break_the_seal(sealed: Path) -> None:
    sums = json.loads((sealed / "checksums.json").read_text())
    (sealed / "three").write_text("other")
    sums |= {name: list(value) for name, value in checksums_of(sealed, [sealed / "three"]).items()}
    (sealed / "checksums.json").write_text(json.dumps(sums))
    assert find_corruption(sealed) == ["checksums.json is not the one that was sealed"]


def test_what_was_never_sealed_is_damaged(tmp_path: Path) -> None:
    assert "FileNotFoundError" in find_corruption(tmp_path)[0]
