"""Names and labels are text wherever a report, a table or a spreadsheet shows them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.analysis.analyse import _csv
from nemo_magic.formatting import csv_cell, markdown_table
from nemo_magic.report import sweep_table
from nemo_magic.report.page import _as_text, render
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.report.sweep_table import Outcome
from tests.report.made_up_run import make_run

MARKUP = (
    '<a href="https://example.invalid/x" style="background:url(https://example.invalid/y)">x</a>',
    '<span style="color:red">x</span>',
    "<b>x</b>",
    "<img src=x onerror=alert(1)>",
    "<sub>1</sub>",
    "a<br>b",
    "&lt;a href='https://example.invalid'&gt;",
    "<A\nHREF='https://example.invalid'>x</A>",
    "1 < 2 & 3 > 2",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "zebra", league=True)


def figures_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]


def texts_of(value: Any, key: str = "") -> list[str]:
    if isinstance(value, dict):
        return [text for name, one in value.items() for text in texts_of(one, name)]
    if isinstance(value, list):
        return [text for one in value for text in texts_of(one, key)]
    return [value] if isinstance(value, str) and key not in ("hovertemplate", "texttemplate") else []


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKUP)
def test_no_name_in_a_chart_is_markup_to_plotly(run: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / re.sub(r"\W", "", name)[:20]
    shutil.copytree(run, folder)
    for file in folder.glob("*.json"):
        data = json.loads(file.read_text())
        for axis in ("attackers", "defenders"):
            if axis in data:
                data[axis] = [f"{name} {number}" for number in range(len(data[axis]))]
        file.write_text(json.dumps(data))
    for file in folder.glob("cross-play/league.json"):
        data = json.loads(file.read_text())
        for axis in ("attackers", "defenders"):
            data[axis] = [f"{name} {number}" for number in range(len(data[axis]))]
        file.write_text(json.dumps(data))
    page = render([RunFolder(folder)])
    shown = [text for text in texts_of(figures_of(page)) if "example.invalid" in text or name[:3] in unescape(text)]
    assert shown
    for text in texts_of(figures_of(page)):
        assert not re.search(r"<(?!br>)", text)
    assert any(unescape(text.replace("<br>", "\n")).startswith(name) for text in shown)


def test_a_runs_name_is_in_no_template(run: Path) -> None:
    figures = json.dumps(figures_of(render([RunFolder(run)])))
    templates = re.findall(r'"(?:hover|text)template": "(.*?)"', figures)
    assert templates
    assert run.name in figures
    assert not any(run.name in template for template in templates)


@given(st.text(max_size=30))
def test_a_text_is_what_plotly_shows_of_it(text: str) -> None:
    made = _as_text({"name": text, "x": [text, 1.5, None]})
    assert unescape(made["name"].replace("<br>", "\n")) == "\n".join(text.splitlines())
    assert made["x"][1:] == [1.5, None]


def test_the_page_forbids_what_it_promises_not_to_do(run: Path) -> None:
    page = render([RunFolder(run)])
    policy = unescape(re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)[1])  # type: ignore[index]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert not re.search(r"https?:|\*|unsafe-(?!inline)", policy)
    assert page.index("Content-Security-Policy") < page.index("<title>")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"].split()


FORMULAS = ["=1+1", "+1", "-1+x", "@SUM(A1)", "\t=1", " =1", "\r=1", "=HYPERLINK(1)", "|x", "%0A", "\uff1d1", "a\r=1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_a_table_is_a_formula(text: str, tmp_path: Path) -> None:
    row = {"strategy": text, "attacks": 1, "share": -0.5}
    outcome = Outcome(text, "finished", 3, {"asr": -0.25})
    sweep_table.write([outcome], tmp_path)
    for table in (_csv([row]), (tmp_path / f"{sweep_table.TABLE}.csv").read_bytes().decode()):
        cells = [cell for line in csv.reader(io.StringIO(table, newline="")) for cell in line]
        assert text.replace("\r", " ").strip() in [cell.removeprefix("'").strip() for cell in cells]
        assert not [cell for cell in cells if cell.lstrip()[:1] in ("=", "+", "@", "|", "%", "\uff1d")]
        assert any(cell in ("-0.5", "-0.25") for cell in cells)
    assert csv_cell(-3) == -3


@given(st.lists(st.text(max_size=20), min_size=2, max_size=2))
def test_a_cell_of_markdown_is_one_cell_without_html_links_and_images(row: list[str]) -> None:
    lines = markdown_table([["a", "b"], row]).splitlines()
    assert len(lines) == 3
    line = re.sub(r"\\.", "", lines[-1])
    assert line.count("|") == 3
    assert "<" not in line
    assert "](" not in line
