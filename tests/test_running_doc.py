"""docs/running.md has the commands for people; a table written by hand rots, so it is checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemo_magic.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")


def test_the_tables_have_every_command_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^ {2,4}([a-z][a-z-]+) ", capsys.readouterr().out, re.MULTILINE))
    assert {"train", "judge-check"} <= commands
    assert set(re.findall(r"^\|[ *a-z]*\| `nemo-magic ([a-z-]+) ", DOC, re.MULTILINE)) == commands


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"`make (\w+)", DOC))
    defined = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"train", "test", "lint"} <= targets
    assert targets <= defined
