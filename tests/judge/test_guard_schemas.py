"""A guard whose answers are JSON tells its model their schema, where the model can be held to one."""

from __future__ import annotations

import asyncio
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_magic.game.episode import Message
from nemo_magic.judge.guards.base import TextGuard
from nemo_magic.judge.guards.deduplicate import DeduplicatingModel
from nemo_magic.judge.guards.qwen3guard import Qwen3Guard
from nemo_magic.judge.guards.rubric import Rubric
from nemo_magic.judge.guards.wildguard import WildGuard
from nemo_magic.judge.models.base import ModelRefused, Question
from nemo_magic.judge.protocol import Ask
from tests.judge.guard_models import ScriptedModel, talk
from tests.judge.test_models_openai import HELLO, ask, chat_reply

TEMPLATES = yaml.safe_load((Path(__file__).parents[2] / "conf/judge/rubric/default.yaml").read_text())
KEYS = {"prompt": ["harm"], "response": ["harm", "refusal", "usefulness"], "intent": ["intent"]}
SCHEMA = {"type": "object", "properties": {"harm": {"type": "string", "enum": ["safe"]}}}


def model(takes_schema: bool) -> ScriptedModel:
    return ScriptedModel(lambda sent: "{}", takes_schema=takes_schema)


@pytest.mark.parametrize("kind", KEYS)
def test_a_rubric_reads_exactly_what_its_schema_allows(kind: str) -> None:
    guard = Rubric(model(True), TEMPLATES)
    schema = guard.schema(kind)
    assert list(schema["properties"]) == schema["required"] == KEYS[kind]
    assert schema["additionalProperties"] is False
    words = [one["enum"] for one in schema["properties"].values()]
    for values in product(*words):
        guard.parse(kind, json.dumps(dict(zip(KEYS[kind], values, strict=True))))
    for key, values in zip(KEYS[kind], words, strict=True):
        with pytest.raises(ValueError, match="none of"):
            guard.parse(kind, json.dumps({name: schema["properties"][name]["enum"][0] for name in KEYS[kind]} |
                                         {key: values[0] + "x"}))  # fmt: skip


def test_each_kind_of_question_is_sent_with_its_own_schema_to_a_model_that_takes_one() -> None:
    item = talk("1", "ask", "reply", *(ask.value for ask in Ask))
    for takes in (True, False):
        scripted = model(takes)
        guard = Rubric(scripted, TEMPLATES)
        asyncio.run(guard.judge([item]))
        assert scripted.schemas == [guard.schema(kind) if takes else None for kind in KEYS]


@pytest.mark.parametrize("kind", [Qwen3Guard, WildGuard])
def test_other_guards_have_no_schema_and_the_keys_they_had(kind: Any) -> None:
    guard: TextGuard = kind(model(True))
    [question, *_] = guard.questions(talk("1"))
    assert question.schema is None
    asker = DeduplicatingModel("g", "1", model(True), None, lambda *_: None)
    plain = Question("response", "x", 4)
    assert asker._key(plain).hex() == "d0bc1630c7e8c6d6471f57e633e853e2232616b68e32fab71650b776dc736477"
    assert asker._key(Question("response", "x", 4, SCHEMA)) != asker._key(plain)


def test_a_schema_makes_no_question_another_one() -> None:
    one, other = Question("prompt", (Message("user", "x"),), 4, SCHEMA), Question("prompt", (Message("user", "x"),), 4)
    assert one == other
    assert len({one, other}) == 1


@pytest.mark.parametrize("sent", [HELLO, "raw"])
def test_a_schema_goes_to_a_server_as_openai_has_it(sent: Any) -> None:
    reply = chat_reply("{}") if sent is HELLO else {"model": "tiny", "choices": [{"text": "{}"}]}
    text, replies = ask((200, reply), sent=sent, schema=SCHEMA)
    assert text == "{}"
    wanted = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert replies.bodies[0]["response_format"] == {"type": "json_schema", "json_schema": wanted}
    own = {"extra_body": {"response_format": {"type": "json_object"}}}
    _, replies = ask((200, reply), sent=sent, schema=SCHEMA, settings=own)
    assert replies.bodies[0]["response_format"] == {"type": "json_object"}
    _, replies = ask((200, reply), sent=sent)
    assert "response_format" not in replies.bodies[0]


@pytest.mark.parametrize(
    "message",
    ["'response_format.type' must be 'text'", "Unsupported field: json_schema", "extra fields: response_format"],
)
@pytest.mark.parametrize("status", [400, 422, 501])
def test_a_server_that_takes_no_schema_is_named_with_the_key_that_turns_it_off(status: int, message: str) -> None:
    error, _ = ask((status, {"error": {"message": message}}), schema=SCHEMA, settings={"give_up_after": 0.1})
    assert isinstance(error, ModelRefused)
    assert "set judge.guard_config.model.json_schema=false" in str(error)


def test_the_key_turns_schemas_off() -> None:
    guard = Rubric({"urls": "http://127.0.0.1:9/v1", "model": "tiny", "json_schema": False}, TEMPLATES)
    [question] = guard.questions(talk("1"))
    assert question.schema is None
