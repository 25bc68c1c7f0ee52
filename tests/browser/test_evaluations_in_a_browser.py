"""Evaluations in the report as a person meets them: in a real browser, at the width of a desk and of a telephone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from nemo_magic.report.evaluation_folder import EvaluationFolder
from nemo_magic.report.page import write
from tests.report.made_up_evaluation import make_evaluation

pytestmark = [pytest.mark.browser, pytest.mark.process]

WIDTHS = (1440, 400)
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three evaluations, one of them without texts."""
    home = tmp_path_factory.mktemp("three")
    base = make_evaluation(home / "base", 0.35, "Qwen/Qwen2.5-7B-Instruct")
    magic = make_evaluation(home / "magic", 0.06, "Qwen2.5-7B-Instruct + MAGIC", base)
    no_game = make_evaluation(home / "no_game", 0.2, texts=False, over=0.3)
    return write([], home / "report.html", [EvaluationFolder(one) for one in (base, magic, no_game)])


@pytest.mark.parametrize("width", WIDTHS)
def test_every_dot_is_drawn_and_nothing_is_wider_than_the_screen(width: int, opened: Open, three: Path) -> None:
    page = opened(three, width)
    charts = page.locator(".chart")
    assert charts.count() == 2 + 1 + 4 + 10
    for chart in charts.all():
        chart.scroll_into_view_if_needed()
        expect(chart).to_have_attribute("data-drawn", "done")
        rows = chart.evaluate("(e) => (e.layout.yaxis.tickvals ?? e.data[0].x).length")
        assert chart.locator(".scatterlayer .points path.point").count() >= 3 * rows
        assert chart.locator(".errorbar").count() == 3 * rows
    page.get_by_label("Show all texts of cases").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """(width) => [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, .chart')
            && e.getBoundingClientRect().right > width + 1).map((e) => e.outerHTML.slice(0, 100))""",
        width,
    )
    assert wide == []


def shown(page: Page) -> int:
    found = re.match(r"([\d,]+) of ", page.locator("#c-found").inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def test_the_table_compares_with_the_first_and_opens_its_parts(opened: Open, three: Path) -> None:
    page = opened(three)
    table = page.get_by_role("region", name="Figures of the evaluations").locator("table")
    assert table.locator("thead th").all_inner_texts() == ["task and figure", "base", "magic", "no_game"]
    row = table.locator("tbody tr").filter(has=page.get_by_role("rowheader", name=re.compile(r"^harmbench\s")))
    cells = row.locator("td").all_inner_texts()
    assert "published 25.0" in cells[0]
    assert re.search(r"−\d+\.\d p = ", cells[1])
    assert row.locator("td").nth(1).locator(".change.good").count() == 1
    parts = page.get_by_text("By category, as tables")
    region = page.get_by_role("region", name="By category: harmbench: harmful asr", exact=True)
    expect(region).to_be_hidden()
    parts.click()
    expect(region).to_contain_text("glorp & drim")
    page.get_by_text("Notes (2)").first.click()
    expect(page.get_by_text("dan: not measured").first).to_be_visible()


def test_texts_of_cases_are_hidden_until_they_are_asked_for(opened: Open, three: Path) -> None:
    page = opened(three)
    items = page.locator("#c-list > li")
    expect(items).to_have_count(20)
    assert "fleb" not in page.locator("#cases").inner_text()
    button = items.first.get_by_role("button")
    button.click()
    expect(items.first).to_contain_text("fleb wildguardtest")
    expect(items.first.locator("dl.texts")).to_contain_text("magic")
    expect(button).to_have_attribute("aria-expanded", "true")
    button.click()
    assert page.locator("#c-list dl.texts").count() == 0


def test_cases_are_searched_filtered_and_turned(opened: Open, three: Path) -> None:
    page = opened(three)
    everything = shown(page)
    page.get_by_label("Task").select_option("harmbench")
    assert shown(page) == 80
    page.get_by_label("Evaluations differ").check()
    differing = shown(page)
    assert 0 < differing < 80
    page.get_by_label("Outcome").select_option("attack succeeded")
    for text in page.locator("#c-list > li").all_inner_texts():
        assert "attack succeeded" in text
        assert "attack failed" in text or "no verdict" in text
    page.get_by_label("Evaluations differ").uncheck()
    page.get_by_label("Outcome").select_option("")
    page.get_by_label("Against a defender").check()
    assert 0 < shown(page) < 80
    page.get_by_label("Against a defender").uncheck()
    page.get_by_role("searchbox").fill("FLEB harmbench 7,")
    ids = [re.findall(r"harmbench_\d+", text) for text in page.locator("#c-list > li").all_inner_texts()]
    assert ids == [[f"harmbench_{tens}7"] for tens in ("", *range(1, 8))]
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Task").select_option("")
    assert shown(page) == everything
    page.get_by_role("button", name="Next cases").click()
    expect(page.locator("#c-page")).to_contain_text("page 2 of")


def test_the_evaluations_can_be_read_aloud(opened: Open, three: Path) -> None:
    page = opened(three)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length
            + [...document.querySelectorAll('figure, section, table')].filter((e) =>
                e.tagName === 'TABLE' ? !e.querySelector('th[scope]') : !e.getAttribute('aria-labelledby')).length"""
    )
    assert unnamed == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
