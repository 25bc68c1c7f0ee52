"""A role that a server plays: what is asked of it, and what becomes of every kind of answer."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import CancelledError
from contextlib import closing
from itertools import product

import pytest

from nemo_magic.actors.config import ActorConfig, LengthConfig, SamplingConfig
from nemo_magic.actors.errors import RemoteRefused
from nemo_magic.game.episode import Completion, NoAnswer
from nemo_magic.net import http
from tests.actors.chat_endpoint import Answer, Body, chat, echo, free_url, says, text_of


def test_completions_come_in_the_order_of_their_chats_whoever_is_answered_first(endpoint, policy):
    last_answered = threading.Event()

    def reply(body: Body) -> Answer:
        if body["messages"][-1]["content"] == "ka 5":
            last_answered.set()
        else:
            assert last_answered.wait(20)
        return echo(body)

    client = policy(endpoint(reply).url)
    said = client.generate([chat(f"ka {n}") for n in range(6)], range(6))
    assert [text_of(completion) for completion in said] == [f"re: ka {n}" for n in range(6)]
    assert client.stats()["completions"] == 6


def test_a_completion_has_neither_token_ids_nor_logprobs(endpoint, policy):
    [said] = policy(endpoint(echo).url).generate([chat("lo mi")], [1])
    assert said == Completion((), (), (), "re: lo mi", finished=True)


def test_a_request_says_what_the_role_is_configured_to_do(endpoint, policy):
    server = endpoint(echo)
    options = ActorConfig(
        sampling_params=SamplingConfig(temperature=0.7, top_p=0.9, end_strings=["</answer>", "END"]),
        length_params=LengthConfig(max_length=17),
    )
    policy(server.url, options=options, extra_body={"top_k": 20}).generate([chat("lo mi")], [2**63 + 5])
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "lo mi"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 17,
            "stop": ["</answer>", "END"],
            "seed": 5,
            "n": 1,
            "top_k": 20,
        }
    ]


def test_every_row_sends_its_own_seed_reduced_to_31_bits_and_again_the_same_when_tried_again(endpoint, policy):
    server = endpoint(lambda _: (503, {}), lambda _: (503, {}), echo)
    seeds = [2**64 - 1, 2**31, 12]
    policy(server.url).generate([chat(str(n)) for n in range(3)], seeds)
    sent = {(body["messages"][-1]["content"], body["seed"]) for body in server.bodies}
    assert sent == {("0", 2**31 - 1), ("1", 0), ("2", 12)}
    assert len(server.bodies) == 5


@pytest.mark.parametrize(("use_greedy", "greedy"), [(True, False), (False, True)])
def test_greedy_is_temperature_zero(endpoint, policy, use_greedy, greedy):
    server = endpoint(echo)
    options = ActorConfig(sampling_params=SamplingConfig(use_greedy=use_greedy))
    policy(server.url, options=options).generate([chat("lo")], [1], greedy=greedy)
    assert server.bodies[0]["temperature"] == 0
    assert "stop" not in server.bodies[0]


def test_null_in_extra_body_leaves_a_key_out(endpoint, policy):
    server = endpoint(echo)
    extra = {"max_tokens": None, "seed": None, "max_completion_tokens": 9}
    policy(server.url, extra_body=extra).generate([chat("lo")], [1])
    assert "max_tokens" not in server.bodies[0]
    assert "seed" not in server.bodies[0]
    assert server.bodies[0]["max_completion_tokens"] == 9


def test_a_chat_without_a_seed_is_refused(endpoint, policy):
    with pytest.raises(ValueError, match="shorter"):
        policy(endpoint(echo).url).submit([chat("lo"), chat("mi")], [1])


def test_a_cut_response_is_not_finished(endpoint, policy):
    kinds = {"cut": says("ka ka ka", "length"), "whole": says("  ka ")}
    client = policy(endpoint(lambda body: (200, kinds[body["messages"][-1]["content"]])).url)
    said = client.generate([chat(kind) for kind in kinds], range(2))
    assert [(c.text, c.finished) for c in said] == [("ka ka ka", False), ("ka", True)]


ABSENT: list[Body] = [{}, {"content": None}, {"content": ""}, {"content": " \n\t"}, {"content": []}]
"""A message without a text."""

BESIDE: list[Body] = [
    {},
    {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"reasoning_content": "ka lo"},
    {"reasoning": "ka lo", "role": "assistant"},
    {"function_call": {"name": "f"}},
    {"refusal": None},
    {"refusal": " "},
    {"refusal": False},
    {"audio": {"id": "1"}},
]
"""What may be in its place."""


def of_message(message: Body, finish_reason: str = "stop") -> Body:
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


@pytest.mark.slow
def test_a_reply_without_a_text_is_no_answer_whatever_it_has_instead(endpoint, policy, caplog):
    reasons = ("stop", "length", "tool_calls", "content_filter", "error")
    kinds = [
        (absent, beside, of_message(absent | beside, reason), reason)
        for absent, beside, reason in product(ABSENT, BESIDE, reasons)
    ]
    server = endpoint(lambda body: (200, kinds[int(body["messages"][-1]["content"])][2]))
    client = policy(server.url)
    with caplog.at_level(logging.WARNING):
        said = client.generate([chat(str(n)) for n in range(len(kinds))], range(len(kinds)))
    for (absent, beside, _, reason), answer in zip(kinds, said, strict=True):
        assert isinstance(answer, NoAnswer)
        content = "null" if absent.get("content") is None else "empty"
        assert answer.reason.startswith(f"content is {content}, finish_reason='{reason}'")
        assert ("tool_calls" in answer.reason.replace("'tool_calls'", "")) == ("tool_calls" in beside)
        assert ("reasoning" in answer.reason) == any("reasoning" in name for name in beside)
    assert len(server.bodies) == len(kinds)  # it is an answer to the request: none is sent again
    stats = client.stats()
    assert (stats["completions"], stats["unanswered"], stats["protocol_errors"]) == (0, len(kinds), 0)
    lines = {record.message for record in caplog.records if "no answer to" in record.message}
    assert len(lines) == len({answer.reason for answer in said})
    assert "actors.attacker.remote: no answer to 12 of 225 chats: content is null, finish_reason='stop'" in str(lines)


def test_content_in_parts_is_the_text_of_those_that_are_text(endpoint, policy):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "lo mi"}]},
        {"type": "text", "text": " ka"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": " lo"},
    ]
    kinds = [parts, parts[:1], [{"type": "text", "text": 5}], ["ka"]]
    client = policy(
        endpoint(lambda body: (200, of_message({"content": kinds[int(body["messages"][-1]["content"])]}))).url,
        protocol_retries=0,
    )
    said = client.generate([chat(str(n)) for n in range(len(kinds))], range(len(kinds)))
    assert text_of(said[0]) == "ka lo"
    assert [isinstance(one, NoAnswer) for one in said] == [False, True, True, True]
    assert client.stats()["protocol_errors"] == 2


@pytest.mark.parametrize("absent", ABSENT)
def test_a_refusal_in_a_field_of_its_own_is_the_refusals_text(endpoint, policy, absent):
    refusal = of_message(absent | {"refusal": " no ka "})
    both = of_message({"content": "ka lo", "refusal": "no ka"})
    client = policy(endpoint(lambda body: (200, both if body["messages"][-1]["content"] == "both" else refusal)).url)
    assert client.generate([chat("lo"), chat("both")], [1, 2]) == [
        Completion((), (), (), "no ka", finished=True),
        Completion((), (), (), "ka lo", finished=True),
    ]
    assert client.stats()["unanswered"] == 0


@pytest.mark.parametrize(
    "error",
    [
        {"message": "ka lo"},
        {"message": "ka lo", "code": None},
        {"message": "ka lo", "code": 400},
        {"message": "ka lo", "code": 200},
        {"message": "ka lo", "code": "moderation"},
        {"message": "ka lo", "type": "server_error"},
        "ka lo",
        ["ka lo"],
    ],
)
def test_an_error_with_status_200_is_shown_and_not_asked_again_and_costs_the_others_nothing(endpoint, policy, error):
    server = endpoint(lambda body: (200, {"error": error}) if body["messages"][-1]["content"] == "1" else echo(body))
    said = policy(server.url).generate([chat("0"), chat("1"), chat("2")], range(3))
    assert [text_of(said[0]), text_of(said[2])] == ["re: 0", "re: 2"]
    assert isinstance(said[1], NoAnswer)
    assert "ka lo" in said[1].reason
    assert len(server.bodies) == 3


@pytest.mark.parametrize("code", [401, 402, 403, 404, "402"])
def test_an_error_with_status_200_that_every_chat_would_get_stops_at_once(endpoint, policy, code):
    server = endpoint(lambda _: (200, {"error": {"message": "no credit", "code": code}}))
    with pytest.raises(RemoteRefused, match=f"{code} {code} no credit"):
        policy(server.url).generate([chat("lo")], [1])
    assert len(server.bodies) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 529])
def test_an_error_with_status_200_that_means_later_is_asked_again(endpoint, policy, code):
    server = endpoint(lambda _: (200, {"error": {"message": "busy", "code": code}}), echo)
    assert text_of(policy(server.url).generate([chat("lo")], [1])[0]) == "re: lo"


def test_a_prompt_that_a_filter_refuses_has_no_answer(endpoint, policy):
    refused = (400, {"error": {"code": "content_filter", "message": "the prompt was filtered"}})
    [said] = policy(endpoint(lambda _: refused).url).generate([chat("lo")], [1])
    assert isinstance(said, NoAnswer)
    assert "the prompt was filtered" in said.reason


def test_a_reply_of_more_bytes_than_are_read_is_no_answer(endpoint, policy, monkeypatch):
    monkeypatch.setattr(http, "MAX_REPLY", 10_000)
    server = endpoint(lambda body: (200, says("ka " * 5000)) if body["messages"][-1]["content"] == "1" else echo(body))
    said = policy(server.url, protocol_retries=1).generate([chat("0"), chat("1")], range(2))
    assert text_of(said[0]) == "re: 0"
    assert isinstance(said[1], NoAnswer)
    assert "longer than 0.01 MB" in said[1].reason
    assert len(server.bodies) == 3


TOO_LONG = {
    "openai": (400, {"error": {"code": "context_length_exceeded", "message": "Please shorten it."}}),
    "vllm": (400, {"object": "error", "message": "This model's maximum context length is 16 tokens. However, ..."}),
    "sglang": (400, {"message": "The input (99 tokens) is longer than the model's context length (16 tokens)."}),
    "llama.cpp": (400, {"error": {"message": "the request exceeds the available context size"}}),
    "anthropic": (413, {"error": {"message": "prompt is too long: 99 tokens > 16 maximum"}}),
    "tgi": (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 16"}),
    "a proxy's": (404, {"detail": "no deployment with this context window"}),
    "not JSON": (400, b"context length exceeded"),
}


@pytest.mark.parametrize("kind", TOO_LONG)
def test_a_chat_that_is_too_long_has_no_completion_and_costs_the_others_nothing(endpoint, policy, kind):
    server = endpoint(lambda body: TOO_LONG[kind] if body["messages"][-1]["content"] == "long" else echo(body))
    client = policy(server.url)
    said = client.generate([chat("lo"), chat("long"), chat("mi")], range(3))
    assert said[1] is None
    assert [text_of(said[0]), text_of(said[2])] == ["re: lo", "re: mi"]
    assert client.stats()["too_long"] == 1
    assert client.stats()["retries"] == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {"error": {"message": "unknown parameter"}}), "400 unknown parameter"),
        ((404, {"error": {"message": "the model tiny does not exist"}}), "404 the model tiny does not exist"),
        ((402, {"error": "no credit"}), "402 no credit"),
        ((413, b"Payload Too Large"), "413 Payload Too Large"),
        ((422, {"detail": [{"msg": "field required", "input": "context length"}]}), "422 field required$"),
        ((308, b"elsewhere", {"Location": "http://127.0.0.1:1/"}), "308 elsewhere"),
    ],
)
def test_a_refused_request_stops_at_once_with_the_servers_words(endpoint, policy, answer, words):
    server = endpoint(lambda _: answer)
    with pytest.raises(RemoteRefused, match=words):
        policy(server.url).generate([chat("lo")], [1])
    assert len(server.bodies) == 1


MALFORMED = {
    "not JSON": b"<html>ka</html>",
    "empty": b"",
    "not what its header says": b"\x1f\x8b",
    "no choices": {"choices": []},
    "two choices": {"choices": says("ka")["choices"] * 2},
    "choices of the wrong type": {"choices": "ka"},
    "no message": {"choices": [{"finish_reason": "stop", "text": "ka"}]},
    "message null": {"choices": [{"message": None, "finish_reason": "stop"}]},
    "content of the wrong type": {"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]},
    "still being written": {"choices": [{"message": {"content": "ka"}, "finish_reason": None}]},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_chat_completion_is_asked_for_again_and_never_becomes_a_text(endpoint, policy, kind):
    server = endpoint(lambda _: (200, MALFORMED[kind]))
    client = policy(server.url, protocol_retries=2)
    [said] = client.generate([chat("lo")], [1])
    assert isinstance(said, NoAnswer)
    assert "no chat completion after actors.attacker.remote.protocol_retries=2; last: " in said.reason
    assert "127.0.0.1" not in said.reason
    assert client.stats()["unanswered"] == 1
    assert len(server.bodies) == 3
    assert client.stats()["protocol_errors"] == 3
    assert client.stats()["completions"] == 0


def test_one_malformed_answer_followed_by_a_right_one_is_a_completion(endpoint, policy):
    server = endpoint(lambda _: (200, b"?"), echo)
    assert text_of(policy(server.url).generate([chat("lo")], [1])[0]) == "re: lo"


@pytest.mark.parametrize(
    "models",
    [
        (200, {"object": "list", "data": [{"id": "other"}, {"id": "tiny"}]}),
        (200, {"data": []}),
        (200, [{"id": "a list of another kind"}]),
        (404, {"detail": "Not Found"}),
    ],
)
def test_a_server_is_ready_when_it_has_the_model_or_does_not_say(endpoint, policy, models):
    policy(endpoint(echo, models=models).url).wait_ready(20)


def test_a_server_that_loads_is_waited_for(endpoint, policy):
    url = free_url()
    client = policy(url)
    waiting = threading.Thread(target=client.wait_ready, args=(30,))
    waiting.start()
    endpoint(echo, port=int(url.rsplit(":", 1)[1].removesuffix("/v1")))
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_model_that_the_server_does_not_have_is_refused_naming_the_nearest(endpoint, policy):
    models = (200, {"data": [{"id": name} for name in ("tiny-chat", "huge", "tinny", "other")]})
    with pytest.raises(RemoteRefused, match=r"actors\.attacker\.remote\.model=tiny; the nearest are: tinny, tiny-chat"):
        policy(endpoint(echo, models=models).url).wait_ready(20)


def test_nothing_is_read_from_the_proxy_environment(endpoint, policy, monkeypatch, tmp_path):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, free_url())
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = endpoint(echo)
    client = policy(server.url, give_up_after=1.0)
    client.wait_ready(20)
    assert text_of(client.generate([chat("lo")], [1])[0]) == "re: lo"
    assert all("authorization" not in headers for headers in server.headers)


def test_closing_cancels_what_is_pending(policy):
    client = policy(free_url())
    pending = client.submit([chat("lo")], [1])
    client.close()
    with pytest.raises(CancelledError):
        pending.result()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate([chat("lo")], [1])


def test_a_rewrite_is_shown_whole_because_only_the_server_knows_its_length(endpoint, policy):
    with closing(policy(endpoint(echo).url)) as client:
        assert client.truncate_to_context("lo mi " * 1000, chat) == "lo mi " * 1000
