from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from made_up_run import analysed, make_run
from playwright.sync_api import Browser

from nemo_magic.report.page import write
from nemo_magic.report.run_folder import RunFolder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not of the session: as long as it is open, an event loop runs in this thread, and nobody else can run one."""
    with chromium.browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that has everything a page can show."""
    folder = analysed(make_run(tmp_path_factory.mktemp("runs") / "magic_sandbox", league=True))
    return write([RunFolder(folder)], folder / "report.html")


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs that differ in their rewards."""
    home = tmp_path_factory.mktemp("two")
    paper = analysed(make_run(home / "paper", steps=60, seed=1))
    robust = analysed(make_run(home / "robust", steps=75, seed=2, reward=0.5))
    return write([RunFolder(paper), RunFolder(robust)], home / "both.html")
