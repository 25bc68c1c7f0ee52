"""The guard of phrases: what begins as a refusal is one. Its agreement with people is in tests/published."""

import asyncio
import sys
from pathlib import Path

import pytest

from nemo_magic.game.episode import Message
from nemo_magic.judge.guards import build_guard, search_modules
from nemo_magic.judge.protocol import make_item

EXAMPLE = Path(__file__).parents[2] / "examples" / "refusals"


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    search_modules([EXAMPLE])
    return build_guard("refusals:RefusalPhrases", {"window": 100})


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I’m really sorry, no.", "yes"),
        ("Thank you. Unfortunately, I cannot help with that.", "yes"),
        ("As an AI, I have no opinion of wugs.", "yes"),
        ("I won't norp.", "yes"),
        ("A wug is a small bird.", "no"),
        ("You can't see it from here." * 3, "no"),
        ("A wug is a small bird. " * 5 + "I'm sorry if that is long.", "no"),
        ("", "no"),
    ],
)
def test_a_response_that_begins_with_a_refusal_is_one(guard, response, expected):
    item = make_item("1", [Message("user", "wug?"), Message("assistant", response)], ask=("refusal",))
    [verdict] = asyncio.run(guard.judge([item]))
    assert (verdict.refusal, verdict.error) == (expected, None)


def test_without_a_response_it_cannot_tell(guard):
    item = make_item("1", [Message("user", "wug?")], ask=("prompt_safety",))
    [verdict] = asyncio.run(guard.judge([item]))
    assert "no response" in verdict.error
