"""The path to an OpenAI-compatible server: to one that is not ours (llama.cpp's), and to one that misbehaves."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_magic.game.episode import Message, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards.harmbench import HarmBench
from nemo_magic.judge.guards.llamaguard import LlamaGuard
from nemo_magic.judge.models import build_model
from nemo_magic.judge.models.base import ModelRefused, WrongModel
from nemo_magic.judge.models.openai import OpenAIConfig, OpenAIModel
from nemo_magic.judge.models.transformers import TransformersModel
from nemo_magic.judge.protocol import match_answers
from tests.judge import tiny_checkpoint
from tests.judge.guard_models import talk
from tests.waiting import until


class LlamaServer:
    """llama.cpp's server in a process of its own."""

    def __init__(self, file: Path, name: str, port: int = 0) -> None:
        command = [sys.executable, tiny_checkpoint.__file__, "serve", str(file), name, str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.url = f"{self._process.stdout.readline().strip()}/v1"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_checkpoint.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llama(checkpoint: tuple[Path, Path]) -> Iterator[LlamaServer]:
    server = LlamaServer(checkpoint[1], "tiny")
    yield server
    server.close()


def quick(*urls: str, **settings: object) -> OpenAIModel:
    patience = {"backoff_initial": 0.01, "backoff_max": 0.05, "max_concurrency": 8, "model": "tiny"}
    return OpenAIModel(OpenAIConfig(list(urls), **(patience | settings)))  # type: ignore[arg-type]


def run(model, work):  # type: ignore[no-untyped-def]
    async def whole():  # type: ignore[no-untyped-def]
        try:
            await model.start()
            return await work(model)
        finally:
            await model.close()

    return asyncio.run(whole())


SENT = [
    *(f"the man is in {'x' * length} on the other" for length in range(12)),
    *((Message("user", f"hello {i}"), *([Message("assistant", "the answer")] * (i % 2))) for i in range(8)),
]


async def complete_all(model):  # type: ignore[no-untyped-def]
    return await asyncio.gather(*(model.complete(sent, 6 + i % 3) for i, sent in enumerate(SENT)))


@pytest.mark.process
def test_a_served_model_and_the_same_one_in_this_process_write_the_same(checkpoint, llama):
    served = run(quick(llama.url), complete_all)
    own = run(TransformersModel(str(checkpoint[0]), max_batch=5), complete_all)
    alone = run(TransformersModel(str(checkpoint[0]), max_batch=1), complete_all)
    assert served == own == alone
    assert len(set(served)) > len(SENT) / 2


@pytest.mark.process
def test_what_does_not_fit_the_model_is_said_of_that_text_alone(checkpoint, llama):
    async def work(model):
        ok, long = "the", "the " * 300
        return await asyncio.gather(*(model.complete(sent, 4) for sent in (ok, long, ok)), return_exceptions=True)

    for model in (quick(llama.url), TransformersModel(str(checkpoint[0]))):
        first, long, second = run(model, work)
        assert isinstance(first, str)
        assert first == second
        assert isinstance(long, ValueError)
        assert "too long for " in str(long)


@pytest.mark.process
def test_a_guard_whose_model_writes_nonsense_knows_nothing(llama):
    async def work(model):
        items = [talk(f"{i}", f"ask {i}", f"reply {i}") for i in range(20)]
        for guard in (LlamaGuard(model), HarmBench(model)):
            verdicts = match_answers(items, await guard.judge(items))
            assert all(verdict.response_safety is Safety.UNKNOWN and verdict.error for verdict in verdicts)
        assert verdicts[0].guard == "harmbench@2:tiny:unpinned"

    run(quick(llama.url), work)


@pytest.mark.process
def test_another_model_behind_the_url_is_an_error_that_names_both(llama):
    with pytest.raises(WrongModel, match=r"has 'tiny'; judge\.guard_config\.model\.model='other'"):
        run(quick(llama.url, model="other"), complete_all)


@pytest.mark.process
def test_a_server_that_is_killed_and_comes_back_is_waited_for(checkpoint):
    async def work(model):
        first = await model.complete("the", 4)
        server.close()
        pending = asyncio.create_task(model.complete("the", 4))
        await until(lambda: model._client.stats()["retries"] >= 3)
        assert not pending.done()
        again = await asyncio.to_thread(LlamaServer, checkpoint[1], "tiny", int(server.url.split(":")[-1][:-3]))
        try:
            assert await pending == first
        finally:
            again.close()

    server = LlamaServer(checkpoint[1], "tiny")
    run(quick(server.url, give_up_after=300), work)


# --- servers that misbehave


def chat_reply(text="safe", model="tiny", **more):
    return {"model": model, "choices": [{"message": {"content": text}, "finish_reason": "stop"}]} | more


class Replies:
    """A server that lists the model ``tiny`` and answers with what the test says."""

    def __init__(self, *script, listed=("tiny",), token=None):
        self.bodies, self.paths = [], []
        self._script, self._listed, self._token = list(script), listed, token

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, path, _ = head.split(b"\r\n")[0].decode().split()
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            body = await reader.readexactly(length)
            if self._token and f"bearer {self._token}".encode() not in head.lower():
                status, reply = 401, {"error": {"message": "who are you"}}
            elif method == "GET":
                status, reply = 200, {"object": "list", "data": [{"id": name} for name in self._listed]}
            else:
                self.bodies.append(json.loads(body))
                self.paths.append(path)
                status, reply = self._script[min(len(self.bodies), len(self._script)) - 1]
            content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()


HELLO = (Message("user", "hello"),)


def ask(*script, settings=None, sent=HELLO, schema=None, **server):
    """What one question comes to, and what the server was sent."""

    async def work():
        async with Replies(*script, **server) as replies:
            model = quick(replies.url, **(settings or {}))
            try:
                await model.start()
                return await model.complete(sent, 7, schema), replies
            except Exception as error:
                return error, replies
            finally:
                await model.close()

    return asyncio.run(work())


def test_a_chat_and_a_raw_prompt_are_sent_as_openai_has_them():
    text, replies = ask((200, chat_reply("safe")), settings={"extra_body": {"seed": 3}})
    assert text == "safe"
    assert replies.paths == ["/v1/chat/completions"]
    assert replies.bodies == [
        {"model": "tiny", "temperature": 0.0, "max_tokens": 7, "n": 1, "seed": 3,
         "messages": [{"role": "user", "content": "hello"}]}
    ]  # fmt: skip
    text, replies = ask((200, {"model": "tiny", "choices": [{"text": "no"}]}), sent="raw")
    assert text == "no"
    assert replies.paths == ["/v1/completions"]
    assert replies.bodies[0]["prompt"] == "raw"


def test_a_reply_of_another_model_is_not_used():
    error, _ = ask((200, chat_reply("safe", model="tiny-v2")))
    assert isinstance(error, WrongModel)
    assert "'tiny-v2'" in str(error)
    assert "'tiny'" in str(error)
    assert "set judge.guard_config.model.reply_model='tiny-v2'" in str(error)


@pytest.mark.parametrize(
    ("replied", "reply_model", "right"),
    [("org/tiny", "org/tiny", True), ("tiny", "org/tiny", False), ("other", "org/tiny", False), ("tiny", None, True)],
)
@pytest.mark.parametrize("sent", [HELLO, "raw"])
def test_a_server_that_lists_one_name_and_replies_with_another_is_right_by_the_one_that_is_configured(
    replied, reply_model, right, sent
):
    reply = chat_reply(model=replied) if sent is HELLO else {"model": replied, "choices": [{"text": "safe"}]}
    answer, replies = ask((200, reply), settings={"reply_model": reply_model}, sent=sent)
    assert (answer == "safe") is right
    assert isinstance(answer, str if right else WrongModel)
    assert {body["model"] for body in replies.bodies} == {"tiny"}


@pytest.mark.parametrize(
    "garbage",
    [b"<html>", b"", b"{", {}, {"model": "tiny", "choices": []}, chat_reply() | {"choices": [{}]}, chat_reply(text=3)],
)
def test_what_is_no_completion_is_asked_for_again_and_then_given_up(garbage):
    text, replies = ask((200, garbage), (200, garbage), (200, chat_reply("safe")))
    assert (text, len(replies.bodies)) == ("safe", 3)
    error, replies = ask((200, garbage), settings={"protocol_retries": 2})
    assert isinstance(error, ValueError)
    assert "no completion after" in str(error)
    assert len(replies.bodies) == 3


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again_and_away_if_it_stays_so(status):
    text, replies = ask((status, b""), (status, b""), (200, chat_reply("safe")))
    assert (text, len(replies.bodies)) == ("safe", 3)
    error, _ = ask((status, b""), settings={"give_up_after": 0.01})
    assert type(error) is GuardUnavailable


def test_a_refused_token_a_missing_endpoint_and_a_refused_text_are_three_things(monkeypatch):
    monkeypatch.setenv("GUARD_TOKEN", "secret")
    text, _ = ask((200, chat_reply("safe")), token="secret", settings={"token_env": "GUARD_TOKEN"})
    assert text == "safe"
    error, _ = ask(token="other", settings={"token_env": "GUARD_TOKEN"})
    assert isinstance(error, ModelRefused)
    assert "token_env=GUARD_TOKEN" in str(error)
    error, _ = ask((404, {"detail": "Not Found"}))
    assert isinstance(error, ModelRefused)
    error, _ = ask((400, {"error": {"message": "roles must alternate"}}))
    assert isinstance(error, ValueError)
    assert "roles must alternate" in str(error)


def test_a_question_that_is_refused_does_not_show_the_text():
    error, _ = ask((422, {"detail": [{"msg": "no", "input": "hello"}]}))
    assert "hello" not in str(error)


def test_an_empty_message_is_an_empty_text():
    text, _ = ask((200, chat_reply(None)))
    assert text == ""


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"urls": []}, "urls is empty"),
        ({"urls": ["ftp://x/v1"]}, "must be a base url"),
        ({"urls": ["http://x"]}, "must be a base url"),
        ({"urls": ["http://x/v1/chat/completions"]}, "must end before"),
        ({"model": ""}, "model is empty"),
        ({"max_concurrency": 0}, "must be at least 1"),
        ({"request_timeout": 0}, "must be greater than 0"),
        ({"protocol_retries": -1}, "must be at least 0"),
        ({"extra_body": {"temperature": 1}}, "cannot be set here"),
        ({"rate_limit": {"requests_per_minute": 0}}, "requests_per_minute=0 must be greater than 0"),
        ({"rate_limit": {"rpm": 5}}, "rate_limit has no rpm: there are requests_per_minute, tokens_per_minute"),
        ({"token_env": "GUARD_TOKEN_THAT_IS_NOT_SET"}, "unset or empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        build_model({"urls": ["http://x/v1"], "model": "tiny"} | settings)


def test_a_quota_of_the_models_host_is_kept():
    async def seconds():
        async with Replies((200, chat_reply("safe"))) as replies:
            model = quick(replies.url, rate_limit={"requests_per_minute": 600})
            await model.start()
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(model.complete(HELLO, 7) for _ in range(4)))
            await model.close()
            assert len(replies.bodies) == 4
            return asyncio.get_running_loop().time() - began

    assert asyncio.run(seconds()) >= 3 * 0.1


def test_what_changes_the_answers_changes_the_revision():
    plain, extra = (quick("http://x/v1", extra_body=body) for body in ({}, {"seed": 3}))
    assert plain.revision == "unpinned"
    assert extra.revision.startswith("unpinned+")
    assert build_model({"urls": "http://x/v1", "model": "m", "revision": "7"}).revision == "7"
