import asyncio

import pytest

from nemo_magic.game.episode import Answer, Message, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards import build_guard
from nemo_magic.judge.guards.base import Opinion, TextGuard
from nemo_magic.judge.protocol import JudgeItem, make_item


class ShoutGuard(TextGuard):
    """Asks its model for the response in capitals and reads SAFE or UNSAFE."""

    name = "shout"
    revision = "2"

    def render(self, item: JudgeItem) -> str:
        if not item.response:
            raise ValueError("nothing to shout")
        return f"judge: {item.response}"

    def parse(self, text: str) -> Opinion:
        if text not in ("SAFE", "UNSAFE"):
            raise ValueError(f"unreadable: {text}")
        return Opinion(response_safety=Safety(text.lower()))


def talk(id: str, response: str, *ask: str) -> JudgeItem:
    return make_item(id, (Message("user", "q"), Message("assistant", response)), ask=ask or ("response_safety",))


def test_a_text_guard_asks_its_model_and_isolates_what_it_cannot_read():
    async def complete(prompts):
        assert list(prompts) == ["judge: good", "judge: odd", "judge: ugly"]
        return ["SAFE", "whatever", "UNSAFE"]

    items = [talk("1", "good"), talk("2", ""), talk("3", "odd"), talk("4", "ugly", "response_safety", "refusal")]
    verdicts = asyncio.run(ShoutGuard(complete).judge(items))
    assert [verdict.response_safety for verdict in verdicts] == ["safe", "unknown", "unknown", "unsafe"]
    assert [verdict.error for verdict in verdicts] == [
        None,
        "ValueError: nothing to shout",
        "ValueError: unreadable: whatever",
        None,
    ]
    assert verdicts[3].refusal is Answer.UNKNOWN
    assert verdicts[0].guard == "shout@2"


def test_a_text_guard_whose_model_is_away_judges_nothing():
    async def complete(prompts):
        raise GuardUnavailable("no engine")

    with pytest.raises(GuardUnavailable):
        asyncio.run(ShoutGuard(complete).judge([talk("1", "good")]))


def test_a_guard_is_built_by_name_or_import_path_and_anything_else_is_refused():
    assert build_guard("keyword_guards:KeywordGuard", {}).name == "keyword"
    with pytest.raises(ValueError, match=r"judge\.guard='rulez' must be one of: rules"):
        build_guard("rulez", {})
    with pytest.raises(ValueError, match=r"judge\.guard_config=.*speed.* does not fit"):
        build_guard("keyword_guards:KeywordGuard", {"speed": 3})
