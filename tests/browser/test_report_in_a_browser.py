"""The report as a person meets it: in a real browser, at the width of a desk and of a telephone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.process]

WIDTHS = (1440, 400)
Open = Callable[..., Page]


def drawn(page: Page) -> list[dict[str, Any]]:
    """Every chart, scrolled to and drawn: its id, how many points it has, and how large it came out."""
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        expect(chart).to_have_attribute("data-drawn", "done")
    found: list[dict[str, Any]] = page.evaluate(
        """() => [...document.querySelectorAll('.chart')].map((e) => ({
            id: e.id,
            points: e.data.flatMap((t) => [...(t.z ? t.z.flat() : t.y ?? [])]).filter((v) => v !== null).length,
            shown: e.querySelectorAll('.main-svg').length, width: e.clientWidth, height: e.clientHeight,
            titled: e.closest('figure').querySelector('figcaption strong').textContent}))"""
    )
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["one_run", "two_runs"])
def test_every_chart_is_drawn_and_has_data(
    which: str, width: int, opened: Open, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(which), width)
    charts = drawn(page)
    titles = {chart["titled"] for chart in charts}
    assert {
        "Attack success, over-refusal, usefulness, intent", "Safety against usefulness", "Cross-play",
        "Exploitability over rounds", "Strategies of the attacker", "Reward of the attacker, by part",
        "Reward of the defender, by part", "Entropy and variety", "Open verdicts, and the second judge",
        "Latency and outages", "Seconds of a step, by part", "Throughput", "How near each alarm is",
        "Every strategy against the first and the last defender", "Hybrids, novelty, intent", "How alike attacks are",
    } <= titles  # fmt: skip
    for chart in charts:
        assert chart["points"] >= 2, chart
        assert chart["shown"] >= 1, chart
        assert chart["height"] >= 200, chart


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(width: int, opened: Open, two_runs: Path) -> None:
    page = opened(two_runs, width)
    drawn(page)
    page.get_by_label("Show all texts").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """(width) => [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, .chart')
            && e.getBoundingClientRect().right > width + 1).map((e) => e.outerHTML.slice(0, 100))""",
        width,
    )
    assert wide == []


def test_what_became_of_each_strategy_is_a_table_that_is_opened(opened: Open, one_run: Path) -> None:
    page = opened(one_run)
    table = page.locator("#strategies table")
    expect(table).to_be_hidden()
    page.get_by_text("What became of each strategy").click()
    expect(table).to_be_visible()
    rows = table.locator("tbody tr")
    strategies = json.loads((one_run.parent / "attacks" / "attacks.json").read_text())["strategies"]
    expect(rows).to_have_count(len(strategies))
    expect(rows.first).to_contain_text(re.compile(r"\d+\.\d\s%"))


def shown(page: Page) -> int:
    found = re.match(r"([\d,]+) of ", page.locator("#found").inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def test_texts_are_hidden_until_they_are_asked_for(opened: Open, one_run: Path) -> None:
    page = opened(one_run)
    items = page.locator("#list > li")
    expect(items).to_have_count(20)
    assert page.locator("#list dl.texts").count() == 0
    assert "bring" not in page.locator("#conversations").inner_text()
    button = items.first.get_by_role("button")
    button.click()
    expect(items.first).to_contain_text("bring")
    expect(button).to_have_attribute("aria-expanded", "true")
    assert page.locator("#list dl.texts").count() == 1
    button.click()
    assert page.locator("#list dl.texts").count() == 0
    page.get_by_label("Show all texts").check()
    assert page.locator("#list dl.texts").count() == 20


def test_the_search_finds_words_in_texts_that_are_hidden(opened: Open, one_run: Path) -> None:
    page = opened(one_run)
    everything = shown(page)
    assert everything == 720
    page.get_by_role("searchbox", name="Search", exact=True).fill("REFUSE mirror")
    some = shown(page)
    assert 0 < some < everything
    page.get_by_label("Show all texts").check()
    for text in page.locator("#list > li").all_inner_texts():
        assert "refuse" in text
        assert "mirror" in text
    page.get_by_role("searchbox", name="Search", exact=True).fill("no such word anywhere")
    assert shown(page) == 0
    expect(page.locator("#list > li")).to_have_count(0)


def test_filters_narrow_what_is_shown_and_combine(opened: Open, one_run: Path) -> None:
    page = opened(one_run)
    everything = shown(page)
    page.get_by_role("combobox", name="Seed", exact=True).select_option("harmful")
    harmful = shown(page)
    assert 0 < harmful < everything
    page.get_by_role("combobox", name="Outcome", exact=True).select_option("attack succeeded")
    won = shown(page)
    assert 0 < won < harmful
    page.get_by_label("From step").fill("3")
    page.get_by_label("To step").fill("5")
    assert 0 < shown(page) < won
    for text in page.locator("#list > li").all_inner_texts():
        assert re.search(r"step [345]\b", text)
        assert "attack succeeded" in text
    page.get_by_role("combobox", name="Outcome", exact=True).select_option("")
    page.get_by_role("combobox", name="Seed", exact=True).select_option("")
    assert shown(page) == 24
    page.get_by_role("combobox", name="Strategy", exact=True).select_option(label="story")
    for text in page.locator("#list > li").all_inner_texts():
        assert "story" in text


def test_pages_are_turned_to_the_last_and_back(opened: Open, one_run: Path) -> None:
    page = opened(one_run)
    first = page.locator("#list > li").first.inner_text()
    before, after = page.get_by_role("button", name="Previous"), page.get_by_role("button", name="Next")
    expect(before).to_be_disabled()
    for _ in range(35):
        after.click()
    expect(page.locator("#page")).to_have_text("page 36 of 36")
    expect(after).to_be_disabled()
    for _ in range(35):
        before.click()
    assert page.locator("#list > li").first.inner_text() == first


def test_runs_are_told_apart_and_what_differs_is_listed(opened: Open, two_runs: Path) -> None:
    page = opened(two_runs)
    page.get_by_role("combobox", name="Run", exact=True).select_option(label="robust")
    for text in page.locator("#list > li").all_inner_texts():
        assert "robust" in text
    table = page.locator("#configuration table")
    expect(table).to_contain_text("rewards.help")
    expect(table).not_to_contain_text("judge.guard")
    assert page.locator("#beside .chart").count() == 4


def test_it_can_be_used_without_a_mouse_and_read_aloud(opened: Open, one_run: Path) -> None:
    page = opened(one_run)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length
            + [...document.querySelectorAll('figure, section, table')].filter((e) =>
                e.tagName === 'TABLE' ? !e.querySelector('th[scope]') : !e.getAttribute('aria-labelledby')).length"""
    )
    assert unnamed == 0
