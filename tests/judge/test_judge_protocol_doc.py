"""docs/judge_protocol.md shows messages of the protocol, and says of it what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_magic.game.episode import Label
from nemo_magic.judge.conformance import REFUSED, UNAUTHORISED
from nemo_magic.judge.protocol import Ask, GuardInfo, JudgeAnswer, JudgeBatch, JudgeItem, match_answers
from nemo_magic.net.http import MAX_REPLY

PAGE = (Path(__file__).parents[2] / "docs" / "judge_protocol.md").read_text(encoding="utf-8")
INFO, REQUEST, ANSWER = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def rows(header: str) -> dict[str, list[str]]:
    """The cells of the table under ``header``, by the first one."""
    table = PAGE.split(f"| {header} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_messages_of_the_page_are_a_request_and_its_answer() -> None:
    info = GuardInfo.model_validate_json(INFO)
    items = JudgeBatch.model_validate_json(REQUEST).items
    match_answers(items, JudgeAnswer.model_validate_json(ANSWER).verdicts, info.guard)
    assert set(rows("key")) == set(GuardInfo.model_fields)
    assert set(rows("key of an item")) == set(JudgeItem.model_fields)


def test_its_table_of_fields_is_that_of_the_code() -> None:
    fields = rows("field")
    assert set(fields) == set(Ask)
    for field in Ask:
        assert re.findall(r"`(\w+)`", fields[field][0]) == list(field.known)
    assert all(f"`{label}`" in rows("key of an item")["seed"][0] for label in Label)


def test_its_statuses_are_those_that_the_check_expects() -> None:
    statuses = list(rows("status"))
    assert tuple(map(int, statuses[0].split(", "))) == REFUSED
    assert tuple(map(int, statuses[1].split(", "))) == UNAUTHORISED
    assert f"more than {MAX_REPLY // 10**6} MB" in PAGE
