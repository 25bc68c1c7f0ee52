"""What clients and guards do that nobody else may notice: clients that leave, bodies that cost, words that wander."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from nemo_magic.game.episode import Message
from nemo_magic.judge.app import MAX_FAULTS, create_app
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.errors import JudgeRefused
from nemo_magic.judge.guards import build_guard
from nemo_magic.judge.guards.ensemble import Ensemble
from nemo_magic.judge.protocol import JudgeItem, JudgeVerdict, make_item
from nemo_magic.judge.server import JsonLines
from tests.judge.faulty_server import FaultyServer, answering, honest
from tests.judge.keyword_guards import KeywordGuard
from tests.judge.serving import body, serving
from tests.waiting import wait_for

CFG = JudgeConfig(server=JudgeServerConfig(max_items=4, max_chars=1000))
READY = '{"guard": "scripted@1", "answers": ["refusal", "response_safety"], "max_items": 64, "max_chars": 100}'
ASK = ("response_safety", "refusal")


# --- bodies that cost more than they weigh

GOOD = '{"id": "1", "conversation": [{"role": "user", "content": "x"}], "ask": ["prompt_safety"]}'
TALK = '[{"role": "user", "content": "x"}]'


def items(*texts: str) -> str:
    return '{"items": [' + ",".join(texts) + "]}"


def keys(count: int) -> str:
    return "{" + ",".join(f'"{n}":0' for n in range(count)) + "}"


CROWDS = {
    "items": items(*["{}"] * 300_000),
    "lists": items(*["[]"] * 300_000),
    "numbers": items(*["0"] * 500_000),
    "messages": items(GOOD.replace(TALK, f"[{'{},' * 300_000}0]")),
    "fields": items(GOOD.replace('["prompt_safety"]', f"[{'0,' * 500_000}0]")),
    "keys": items(keys(100_000)),
    "top keys": keys(100_000),
    "no items": "[" + "{}," * 300_000 + "0]",
    "few keys": items(keys(900)),
    "few items": items(*["{}"] * 900),
    "few messages": items(GOOD.replace(TALK, f"[{'{},' * 500}0]")),
}


@pytest.mark.slow
@pytest.mark.parametrize("crowd", CROWDS)
def test_a_million_faults_cost_no_more_than_ten(crowd: str) -> None:
    with serving(create_app(KeywordGuard(), CFG)) as http:
        reply = http.post("/v1/judge", content=CROWDS[crowd])
    assert reply.status_code in (413, 422)
    assert len(reply.content) < 3000
    if reply.status_code == 422:
        faults = reply.json()["detail"]
        assert len(faults) <= MAX_FAULTS + 1
        if len(faults) > MAX_FAULTS:
            assert int(faults[-1]["msg"].removeprefix("and ").removesuffix(" more errors")) >= 900 - MAX_FAULTS


def test_long_conversations_are_no_crowd() -> None:
    turns = [Message(role, f'{{"[,]": {n}}}') for n in range(60) for role in ("user", "assistant")]
    items = [make_item(str(n), turns[:20], ask=ASK) for n in range(3)] + [make_item("x", turns, ask=ASK)]
    with serving(create_app(KeywordGuard(), replace(CFG, server=replace(CFG.server, max_chars=10_000)))) as http:
        assert http.post("/v1/judge", content=body(*items)).status_code == 200


# --- clients that leave


class Held(KeywordGuard):
    """Judges what is not its probe when it is let."""

    def __init__(self) -> None:
        self.entered, self.cancelled = threading.Event(), threading.Event()

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        if items[0].id != self.probe.id:
            self.entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return await super().judge(items)


def begin(http: httpx.Client, content: str, length: int) -> socket.socket:
    """A connection on which ``content`` was sent as the beginning of a body of ``length`` bytes."""
    connection = socket.create_connection((http.base_url.host, http.base_url.port), timeout=20)
    connection.sendall(f"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{content}".encode())
    return connection


def refused_clients(http: httpx.Client) -> bool:
    return 'judge_requests_total{status="499"} 1.0' in http.get("/metrics").text


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_who_leaves_in_the_middle_of_a_body_costs_no_traceback(
    part: float, item: Callable[..., JudgeItem], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "uvicorn.error")
    with serving(create_app(KeywordGuard(), CFG)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        content = body(item("1", "x"))
        begin(http, content[: int(part * len(content))], len(content)).close()
        wait_for(lambda: refused_clients(http))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_work_for_a_client_that_hung_up_is_cancelled(
    item: Callable[..., JudgeItem], caplog: pytest.LogCaptureFixture
) -> None:
    guard = Held()
    with serving(create_app(guard, CFG)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        content = body(item("1", "x"))
        connection = begin(http, content, len(content))
        assert guard.entered.wait(20)
        assert "judge_pending_items 1.0" in http.get("/metrics").text
        connection.close()
        assert guard.cancelled.wait(20)
        wait_for(lambda: refused_clients(http) and "judge_pending_items 0.0" in http.get("/metrics").text)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_guard_that_computes_stops_computing_for_who_hung_up(item: Callable[..., JudgeItem]) -> None:
    judged: list[str] = []
    entered, gone = threading.Event(), threading.Event()

    class Slow(KeywordGuard):
        def opinion(self, item: JudgeItem) -> Any:
            judged.append(item.id)
            entered.set()
            assert gone.wait(20)
            return super().opinion(item)

    async def run() -> None:
        judging = asyncio.create_task(Slow().judge([item(str(n), "x") for n in range(100)]))
        await asyncio.to_thread(entered.wait, 20)
        judging.cancel()
        await asyncio.gather(judging, return_exceptions=True)
        gone.set()

    asyncio.run(run())  # waits for its threads
    assert judged == ["0"]


# --- words of a guard's server


class Echo:
    """A server of the model ``m`` that answers each question with ``status`` and the question itself."""

    def __init__(self, status: int, form: Callable[[str], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, json.dumps({"data": [{"id": "m"}]}))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(status, form(asked["messages"][0]["content"]))

            def _send(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


FORMS: dict[str, Callable[[str], str]] = {
    "text": lambda asked: f"cannot answer\n\n{asked}\n",
    "error": lambda asked: json.dumps({"error": {"message": f"cannot answer {asked}"}}),
    "key": lambda asked: json.dumps({asked: 1}),
    "answer": lambda asked: json.dumps(
        {"model": "m", "choices": [{"finish_reason": "stop", "message": {"content": asked}}]}
    ),
    "model": lambda asked: json.dumps(
        {"model": asked, "choices": [{"finish_reason": "stop", "message": {"content": "Safety: Safe"}}]}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "form"),
    [(500, "text"), (503, "error"), (429, "text"), (400, "error"), (404, "text"), (401, "error"), (200, "text"),
     (200, "key"), (200, "answer"), (200, "model")],
)  # fmt: skip
def test_what_the_guards_server_repeats_reaches_neither_the_log_nor_another_client(
    status: int, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = Echo(status, FORMS[form])
    model = {"urls": [echo.url], "model": "m", "give_up_after": 0.3, "backoff_initial": 0.01, "backoff_max": 0.02}
    guard = build_guard("qwen3guard", {"model": model | {"protocol_retries": 1}})
    cfg = JudgeConfig(server=JudgeServerConfig(probe_interval=0.05))

    def ask(number: int) -> tuple[int, str]:
        item = make_item("1", (Message("user", f"secret-{number}-"),), ask=("prompt_safety",))
        return number, http.post("/v1/judge", content=body(item)).text

    try:
        with serving(create_app(guard, cfg)) as http:
            wait_for(lambda: "is loading" not in http.get("/readyz").text)
            with ThreadPoolExecutor(16) as pool:
                for number, text in pool.map(ask, range(32)):
                    assert text.count("secret-") == text.count(f"secret-{number}-"), text
            wait_for(lambda: "capital" not in http.get("/readyz").text and http.get("/readyz").status_code == 503)
            assert "secret-" not in http.get("/readyz").text + http.get("/metrics").text
    finally:
        echo.close()
    assert "secret-" not in "".join(JsonLines().format(record) for record in caplog.records)


@pytest.mark.parametrize("texts", [False, True])
def test_a_guard_that_fails_on_a_text_shows_it_in_the_log_only_where_texts_are_logged(
    texts: bool, item: Callable[..., JudgeItem], caplog: pytest.LogCaptureFixture
) -> None:
    class Quoting(KeywordGuard):
        async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
            if items[0].id == self.probe.id:
                return await super().judge(items)
            try:
                raise LookupError(items[0].prompt)
            except LookupError as error:
                raise ValueError(f"cannot read {items[0].response}") from error

    with serving(create_app(Quoting(), CFG)) as http:
        [verdict] = http.post("/v1/judge", content=body(item("1", "secret-1", "secret-2"))).json()["verdicts"]
    assert verdict["error"] == "ValueError: cannot read secret-1"
    log = "".join(JsonLines(texts).format(record) for record in caplog.records)
    assert ("secret-1" in log, "secret-2" in log) == (texts, texts)
    assert "LookupError" in log
    assert "in judge" in log


@pytest.mark.slow
def test_a_task_whose_error_nobody_read_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    words = "-".join(("secret", "1"))  # a traceback shows the line of code

    async def fail() -> None:
        raise ValueError(words)

    async def run() -> None:
        await asyncio.wait({asyncio.create_task(fail())})

    asyncio.run(run())
    gc.collect()
    assert "secret-1" in caplog.text
    assert "secret-1" not in "".join(JsonLines().format(record) for record in caplog.records)


# --- another guard's name


class Impostor(KeywordGuard):
    """Gives verdicts in another guard's name."""

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        return [replace(verdict, guard="other@2") for verdict in await super().judge(items)]


def test_a_verdict_in_another_guards_name_is_no_verdict_of_a_server(item: Callable[..., JudgeItem]) -> None:
    with serving(create_app(Impostor(), CFG)) as http:
        verdicts = http.post("/v1/judge", content=body(item("1", "x"), item("2", "y"))).json()["verdicts"]
    for verdict in verdicts:
        assert (verdict["guard"], verdict["response_safety"]) == ("keyword@1", "unknown")
        assert "names the guard other@2" in verdict["error"]


def test_a_verdict_in_another_guards_name_is_no_vote_of_an_ensembles_member(item: Callable[..., JudgeItem]) -> None:
    here = "tests.judge.test_judge_abuse:Impostor"
    ensemble = Ensemble({"one": {"guard": here}, "two": {"guard": here}})
    [verdict] = asyncio.run(ensemble.judge([item("1", "x")]))
    assert verdict.response_safety == "unknown"
    assert "names the guard other@2" in str(verdict.error)


@pytest.mark.parametrize("expect", [None, "scripted@1", "other@2"])
@pytest.mark.parametrize("said", ["scripted@1", "other@2"])
@pytest.mark.parametrize("given", ["scripted@1", "other@2"])
@pytest.mark.parametrize("first", [0, 1])
def test_who_a_judge_says_it_is_and_who_its_verdicts_name_have_to_be_one_and_the_expected(
    expect: str | None, said: str, given: str, first: int, item: Callable[..., JudgeItem]
) -> None:
    servers = [FaultyServer(answering(guard=given), info=READY.replace("scripted@1", said).encode())]
    if first:  # another that is in order
        servers.insert(0, FaultyServer(honest, info=READY.encode()))
    cfg = JudgeConfig(batch_size=1, urls=[server.url for server in servers], expect=expect, max_concurrency=2)
    try:
        with JudgeClient(cfg) as client:
            asked = client.score([item(str(n), f"x {n}", ask=ASK) for n in range(8)])
            names = {said, given, expect or said, *(["scripted@1"] if first else [])}
            if len(names) > 1:
                with pytest.raises(JudgeRefused, match="is the guard"):
                    asked.result()
            else:
                assert {verdict.guard for verdict in asked.result()} == names
    finally:
        for server in servers:
            server.close()
