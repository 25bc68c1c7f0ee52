"""Where tokens lie in texts, what ends an answer, what is refused, and what the desk promises: without a model."""

from __future__ import annotations

import json
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_magic.actors.config import SamplingConfig
from nemo_magic.actors.sampling import StopConditions
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.config.serving import ServeConfig
from nemo_magic.serving.app import create_app
from nemo_magic.serving.engine import GenerationRequest, GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer
from nemo_magic.serving.protocol import ApiError, ChatRequest, CompletionRequest, parse
from nemo_magic.serving.request_queue import RequestQueue


@pytest.fixture(scope="module")
def words() -> OffsetTokenizer:
    """Bytes, as a byte-level tokenizer has them: a character may be several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    vocabulary["so"] = len(vocabulary)
    built = Tokenizer(models.BPE(vocabulary, [("s", "o")]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = "{{ messages[0]['content'] }}"
    return OffsetTokenizer(wrapped, ChatTokenizer(SimpleNamespace(tokenizer=wrapped)))


def test_every_token_of_a_text_lies_where_it_says_and_they_make_up_the_text(words: OffsetTokenizer) -> None:
    text = "so é\n so…"
    for tokens in (words.of_text(text), words.of_ids(words.of_text(text).ids)):
        assert tokens.text == text
        assert tokens.ids == words.of_text(text).ids
        assert [text[at : at + len(piece)] for at, piece in zip(tokens.offsets, tokens.pieces, strict=True)] == list(
            tokens.pieces
        )
    by_ids = words.of_ids(words.of_text(text).ids)
    assert "".join(by_ids.pieces) == text
    assert by_ids.pieces[:4] == ("so", " ", "", "é")
    assert words.of_ids(by_ids.ids, begin=10).offsets == tuple(at + 10 for at in by_ids.offsets)


def test_special_tokens_are_shown_as_tokens_and_not_in_what_is_said(words: OffsetTokenizer) -> None:
    ids = [*words.of_text("so").ids, words.chat.end_id]
    assert words.of_ids(ids).pieces == ("so", "</s>")
    assert words.response_text(ids, []) == "so"


@pytest.mark.parametrize(
    ("response", "stops", "said", "size"),
    [
        ("so so", [" "], "so", 2),
        ("so\nso", ["\n"], "so", 2),
        (" \n so", ["\n"], " ", 2),
        ("abso", ["so"], "ab", 3),
        ("abso", ["bs", "o"], "a", 3),
        ("abso", ["x"], "abso", None),
    ],
)
def test_an_answer_ends_where_it_says_a_stop_string_whatever_its_tokens(
    words: OffsetTokenizer, response: str, stops: list[str], said: str, size: int | None
) -> None:
    ids = words.of_text(response).ids
    assert words.response_text(ids, stops) == said
    assert StopConditions.of(words.chat, stops, "cpu").end_of(words.chat, ids) == size


def test_a_stop_string_that_is_a_token_is_looked_for_within_others_too_and_a_special_one_by_its_id(
    words: OffsetTokenizer,
) -> None:
    stops = StopConditions.of(words.chat, ["so", "</s>"], "cpu")
    assert stops.strings == ("so",)
    assert stops.ids.tolist() == [words.chat.end_id, words.of_text("so").ids[0], words.chat.end_id]


# --- requests


def body(**more: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "so"} | more).encode()


def test_temperature_0_is_the_likeliest_and_nothing_said_is_temperature_1() -> None:
    assert parse(CompletionRequest, body(temperature=0)).sampling == SamplingConfig(use_greedy=True)
    assert parse(CompletionRequest, body()).sampling == SamplingConfig()
    asked = parse(CompletionRequest, body(temperature=0.5, top_p=0.9, top_k=-1, stop="so")).sampling
    assert asked == SamplingConfig(temperature=0.5, top_p=0.9, end_strings=["so"])


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("so", ["so"]), (["so", "a"], ["so", "a"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_prompt_is_a_text_or_ids_or_several_of_either(prompt: Any, prompts: Any) -> None:
    assert parse(CompletionRequest, body(prompt=prompt)).prompts == prompts


def test_a_chat_message_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "so"}, {"type": "text", "text": " so"}]
    asks = parse(ChatRequest, json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())
    assert asks.messages[0].text == "so so"


@pytest.mark.parametrize("wrong", [b"", b"[]", b"{", b'"so"', b'{"model": "m", "prompt": "so", "prompt_": 1}'])
def test_what_is_no_request_is_refused_without_being_repeated(wrong: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse(CompletionRequest, wrong)
    assert refused.value.status == 400
    assert '"so"' not in refused.value.message


# --- the desk

JOB = GenerationRequest((1, 2), 3, SamplingConfig(), 0)


def opened(words: OffsetTokenizer, most: int = 4) -> RequestQueue:
    desk = RequestQueue(most)
    desk.open(words, 8)
    return desk


def test_nothing_is_taken_while_the_model_loads_and_after_the_end_began(words: OffsetTokenizer) -> None:
    desk = RequestQueue(4)
    for problem in ("the model is loading", "the server ends"):
        for ask in (desk.ready, lambda: desk.submit([JOB])):
            with pytest.raises(ApiError, match=problem) as refused:
                ask()
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        desk.open(words, 8)
        assert desk.ready() == (words, 8)
        desk.close()


def test_who_waits_when_the_end_begins_is_still_computed_and_who_is_abandoned_is_told(words: OffsetTokenizer) -> None:
    desk = opened(words)
    first, second = desk.submit([JOB, JOB])
    desk.close()
    [(_, promise)] = desk.take(1, 0)
    desk.abandon("the server ends")
    promise.set_result(GenerationResult((1,), True))
    assert first.result() == GenerationResult((1,), True)
    assert isinstance(second.exception(), ApiError)
    assert desk.take(4, 0) == []


def test_there_is_room_for_so_many_rows_and_for_any_request_when_nobody_waits(words: OffsetTokenizer) -> None:
    desk = opened(words, most=2)
    promises: list[Future[GenerationResult]] = desk.submit([JOB] * 3)
    with pytest.raises(ApiError, match="serve.max_pending=2"):
        desk.submit([JOB])
    promises[0].cancel()  # somebody has gone away
    assert len(desk.take(4, 0)) == 2
    for promise in promises[1:]:
        promise.set_result(GenerationResult((), False))
    assert len(desk.submit([JOB])) == 1


def test_a_server_that_others_can_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="serve.token_env has to be set"):
        ServeConfig(host="0.0.0.0").token()
    assert ServeConfig(host="::1").token() is None
    monkeypatch.setenv("MADE_UP", "")
    with pytest.raises(ValueError, match="serve.token_env=MADE_UP"):
        ServeConfig(token_env="MADE_UP").token()


@pytest.mark.slow
def test_all_but_health_is_behind_the_token_and_what_does_not_exist_is_said_as_clients_read_it(
    words: OffsetTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADE_UP", "key")
    desk = RequestQueue(4)
    client = TestClient(create_app(ServeConfig(model="m", token_env="MADE_UP"), desk, 8))
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json()["error"]["message"] == "the model is loading"
    desk.open(words, 8)
    assert client.get("/readyz").json() == {"status": "ready", "model": "m"}
    for path in ("/v1/models", "/v1/models/m"):
        assert client.get(path).status_code == 401
    refused = client.post("/v1/completions", content=body(), headers={"Authorization": "Bearer other"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    client.headers["Authorization"] = "Bearer key"
    assert client.get("/v1/models").json()["data"][0]["id"] == "m"
    assert client.get("/v1/models/other").json()["error"]["param"] == "model"
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_what_takes_too_long_or_is_too_large_is_told_to_come_again_or_not(words: OffsetTokenizer) -> None:
    desk = opened(words, most=1)
    client = TestClient(create_app(ServeConfig(model="m", request_timeout=0.05, max_body_mb=0.001), desk, 8))
    late = client.post("/v1/completions", content=body(max_tokens=1))
    assert (late.status_code, late.headers["Retry-After"]) == (503, "1")
    assert "serve.request_timeout=0.05" in late.json()["error"]["message"]
    assert desk.take(4, 0) == []  # nobody waits for it any more
    large = client.post("/v1/completions", content=body(prompt="so" * 1000))
    assert (large.status_code, large.json()["error"]["message"]) == (
        413,
        "the body is longer than serve.max_body_mb=0.001",
    )


CROWDS = {
    "messages": '{"model": "m", "messages": [' + "{}," * 3_000 + "{}]}",
    "parts": '{"model": "m", "messages": [{"role": "user", "content": [' + "{}," * 3_000 + "{}]}]}",
    "prompts": '{"model": "m", "prompt": [' + "{}," * 3_000 + "{}]}",
    "prompts of ids": '{"model": "m", "prompt": [' + "[{}]," * 3_000 + "{}]}",
    "stops": '{"model": "m", "prompt": "so", "stop": [' + "{}," * 3_000 + "{}]}",
}


@pytest.mark.parametrize("crowd", CROWDS)
def test_of_a_crowd_of_faults_few_are_looked_for(crowd: str) -> None:
    kind = ChatRequest if '"messages"' in CROWDS[crowd] else CompletionRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(CROWDS[crowd])
    assert caught.value.error_count() < 10


@pytest.mark.parametrize("crowd", ["[0],", "0,"])
def test_no_value_is_made_of_more_than_can_be_answered(words: OffsetTokenizer, crowd: str) -> None:
    client = TestClient(create_app(ServeConfig(model="m"), opened(words), 8))
    reply = client.post("/v1/completions", content=f'{{"model": "m", "prompt": [{crowd * 1_000_000}0]}}')
    assert reply.status_code == 413
    assert "values" in reply.json()["error"]["message"]
