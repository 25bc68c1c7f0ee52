import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from nemo_magic.game.episode import Label, Message, Seed
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.local import LocalJudge, launch_local
from nemo_magic.judge.protocol import JudgeItem, make_item

ASK_ALL = ("prompt_safety", "response_safety", "refusal", "helpful", "intent_preserved")


@pytest.fixture(scope="session", autouse=True)
def importable_test_guards() -> Iterator[None]:
    """Server processes find the guards of this folder."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *([before] if before else [])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def quick() -> JudgeConfig:
    """A client with little patience between attempts, and the keyword guard."""
    return JudgeConfig(
        guard="tests.judge.keyword_guards:KeywordGuard",
        backoff_initial=0.01,
        backoff_max=0.05,
        request_timeout=20.0,
        give_up_after=60.0,
    )


@pytest.fixture(scope="session")
def judge(quick: JudgeConfig) -> Iterator[LocalJudge]:
    """A server in a process of its own, with small limits."""
    with launch_local(replace(quick, server=replace(quick.server, max_items=8, max_chars=200))) as local:
        yield local


@pytest.fixture
def item() -> Callable[..., JudgeItem]:
    def build(id: str, response: str, prompt: str = "a question", ask: tuple[str, ...] = ASK_ALL) -> JudgeItem:
        conversation = (Message("user", prompt), Message("assistant", response))
        return make_item(id, conversation, ask=ask, seed=Seed("s", "question", Label.BENIGN))

    return build


Reply = Callable[[dict], tuple[int, bytes]]  # type: ignore[type-arg]


class ScriptedServer:
    """Answers every POST with the next reply of its script, the last one forever."""

    def __init__(self, script: list[Reply]) -> None:
        self.bodies: list[dict] = []  # type: ignore[type-arg]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = script[min(len(outer.bodies), len(script) - 1)]
                outer.bodies.append(body)
                status, content = reply(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(*script: Reply) -> ScriptedServer:
        servers.append(ScriptedServer(list(script)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def honest(body: dict) -> dict:  # type: ignore[type-arg]
    """A right answer to a request body: everything is safe and fine."""
    values = {"prompt_safety": "safe", "response_safety": "safe"}
    return {
        "verdicts": [
            {"id": item["id"], "guard": "scripted@1"} | {field: values.get(field, "yes") for field in item["ask"]}
            for item in body["items"]
        ]
    }


@pytest.fixture
def honest_reply() -> Reply:
    return lambda body: (200, json.dumps(honest(body)).encode())
