"""A file that is written anew is the old one or the new one, whatever happens; and nobody writes over an old one."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

import nemo_magic
from nemo_magic import fsync_io
from nemo_magic.fsync_io import replace_durably, replacing

PACKAGE = Path(nemo_magic.__file__).parent

INTO_WHAT_IS_NEW = {
    "fsync_io.py": "the one that writes beside and renames",
    "runtime/folder_owner.py": "created exclusively",
    "judge/local.py": "a temporary folder of its own",
    "judge/server.py": "beside, and renamed",
    "sandbox/corpus.py": "beside, and renamed",
    "sandbox/tokenizer.py": "a folder that world.json finishes",
    "convert": "a folder beside, and renamed (atomic_output)",
    "actors/vllm.py": "a temporary folder of its own",
    "runtime/checkpoint_manager.py": "a folder beside, and renamed",
    "evaluation/transcripts.py": "those of before were removed first; a line counts once it is whole",
}
"""Where a file may be opened for writing, and why nothing is lost there."""


@pytest.mark.parametrize("old", ["before\n", None])
@pytest.mark.parametrize("fails", ["write", "fsync", "rename"])
def test_an_old_file_stays_until_the_new_one_is_whole(
    old: str | None, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    if old is not None:
        path.write_text(old)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        if fails == "rename":
            disk.setattr(Path, "replace", full)
        elif fails == "fsync":
            disk.setattr(fsync_io.os, "fsync", full)
        else:
            disk.setattr(fsync_io, "write_durably", full)
        with pytest.raises(OSError, match="No space left"):
            replace_durably(path, "after\n")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == ([("result.json", old)] if old else [])
    replace_durably(path, "after\n")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("result.json", "after\n")]


def test_an_interrupted_writer_leaves_nothing_beside(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "picture.png") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def _truncates(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "write_bytes"):
        return True
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)] + [
        k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)
    ]
    return name == "open" and any(isinstance(mode, str) and mode in ("w", "wb", "w+", "wt") for mode in modes)


def test_nothing_in_the_package_opens_an_old_file_to_write_over_it() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).as_posix()
        if inside in INTO_WHAT_IS_NEW or inside.split("/")[0] in INTO_WHAT_IS_NEW:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _truncates(node):
                found.append(f"{inside}:{node.lineno}: {ast.unparse(node)[:80]}")
    # A file beside the one that it is to become (replacing), and what is no file at all.
    allowed = ("partial.open('w'", "open(os.devnull")
    assert [line for line in found if not any(word in line for word in allowed)] == []
