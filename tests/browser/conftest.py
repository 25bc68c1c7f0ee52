from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from nemo_magic.report.page import write
from nemo_magic.report.run_folder import RunFolder
from tests.browser import chromium
from tests.report.made_up_run import analysed, make_run

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not of the session: as long as it is open, an event loop runs in this thread, and nobody else can run one."""
    with chromium.browser() as opened:
        yield opened


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a page, and at the end insists that it had no error and asked for nothing but itself."""
    complaints: list[str] = []
    asked: list[str] = []
    pages: list[Page] = []

    def open_page(path: Path, width: int = 1440) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert [text for text in complaints if not text.startswith(("info:", "log:"))] == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


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
