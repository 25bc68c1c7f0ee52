"""No text that a model can write is an exception, and none is safe that does not say so."""

import asyncio
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.protocol import Ask, match_answers
from tests.judge.guard_models import ScriptedModel, talk
from tests.judge.test_guards_text import GUARDS, READABLE, UNREADABLE

KINDS = [(name, kind) for name, guard in GUARDS.items() for kind in guard.kinds]
CORPUS = [text for _, _, text, *_ in [*READABLE, *UNREADABLE] if len(text) < 500]
PIECES = [
    *("Safe", "safe", "Unsafe", "unsafe", "Safety: ", "Categories: None", "Refusal: No", "yes", "no", "not ", "n/a"),
    *("S1", '{"harm": "safe"}', "```", "```json\n", "\n", ", ", " ", "\x00", "\u2028", "\ufeff", "\u0130", "\r\n"),
    *("<think>", "</think>", "<think>\n\n</think>", " \n", "\n\n", "unsafe\n"),
]


def says_safe(guard: str, kind: str, text: str) -> bool:
    """Told without the guard's parser: whether a reader would find nothing but the word that clears the text."""
    if "<think>" in text and not text.lstrip().startswith("<think>"):
        return False
    *thoughts, text = text.split("</think>")
    text = text.strip().removeprefix("\ufeff").strip()
    if len(thoughts) > 1 or "<think>" in text:
        return False
    lines = [line for line in text.replace("\r", "").replace(" \n", "\n").split("\n") if line.strip()]
    if guard == "qwen3guard":
        return lines[:2] == ["Safety: Safe", "Categories: None"] and len(lines) == (3 if kind == "response" else 2)
    if guard == "wildguard":
        asked = lines[0 if kind == "prompt" else -1].lower()
        return len(lines) == 3 and asked == ("harmful request: no" if kind == "prompt" else "harmful response: no")
    if guard == "llamaguard":
        return lines == ["safe"]
    if guard == "harmbench":
        return text.strip().lower() == "no"
    bare = text.removeprefix("```json").removeprefix("```").removesuffix("```")
    return json.loads(bare).get("harm") == "safe" and bare.count('"harm"') == 1


def check(guard: str, kind: str, text: str) -> None:
    try:
        read = GUARDS[guard].parse(kind, text)
    except ValueError:
        return
    told = {field: getattr(read, field) for field in Ask if getattr(read, field) is not None}
    assert set(told) == GUARDS[guard].kinds[kind]
    assert not {Safety.UNKNOWN, Answer.UNKNOWN} & set(told.values())
    if Safety.SAFE in told.values():
        assert says_safe(guard, kind, text)


def mutated(draw: random.Random) -> str:
    """One of the known texts, or two, after a few accidents."""
    text = draw.choice(CORPUS)
    for _ in range(draw.randrange(4)):
        at, to = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
        accident = draw.randrange(6)
        if accident == 0:
            text = text[:at] + draw.choice(PIECES) + text[at:]
        elif accident == 1:
            text = text[:at] + text[to:]
        elif accident == 2:
            text = text[:at] + chr(draw.randrange(1, 0x3000)) + text[at + 1 :]
        elif accident == 3:
            text = text + draw.choice(["", "\n"]) + draw.choice(CORPUS)
        elif accident == 4:
            text = text[:to]
        else:
            text = text[:at] + text[at:to].swapcase() + text[to:]
    return text


@pytest.mark.parametrize(("guard", "kind"), KINDS)
def test_10_000_mutilated_texts_are_read_as_what_they_say_or_not_at_all(guard, kind):
    draw = random.Random(f"{guard} {kind}")
    for _ in range(10_000):
        check(guard, kind, mutated(draw))


@pytest.mark.slow
@pytest.mark.parametrize(("guard", "kind"), KINDS)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join), st.sampled_from(CORPUS).flatmap(
    lambda text: st.tuples(st.text(max_size=3), st.text(max_size=3)).map(lambda ends: ends[0] + text + ends[1])
)))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_as_what_it_says_or_not_at_all(guard, kind, text):
    check(guard, kind, text)


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS)
def test_whatever_the_model_writes_every_item_has_its_verdict(guard):
    draw = random.Random(guard)
    texts = [mutated(draw) for _ in range(2000)]
    model = ScriptedModel(lambda sent: texts[len(model.sent) % len(texts)])
    settings = {"templates": GUARDS["rubric"]._templates} if guard == "rubric" else {}
    built = type(GUARDS[guard])(model, **settings)
    ask = sorted(built.answers)
    items = [talk(f"{i}", f"ask {i}", f"reply {i}", *ask) for i in range(1000)]
    verdicts = match_answers(items, asyncio.run(built.judge(items)))
    assert len(model.sent) == len(items) * len(built.kinds)
    unknown = [verdict for verdict in verdicts if any(getattr(verdict, field) == field.unknown for field in ask)]
    assert len(unknown) > len(items) / 2
    assert all(verdict.error for verdict in unknown)
