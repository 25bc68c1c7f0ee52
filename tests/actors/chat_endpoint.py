"""A loopback server that answers chat requests by a script."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nemo_magic.game.episode import Completion, Message, NoAnswer

Body = dict[str, Any]
Answer = tuple[int, object] | tuple[int, object, dict[str, str]]
Reply = Callable[[Body], Answer]


def says(text: str | None, finish_reason: str = "stop") -> Body:
    return {"object": "chat.completion", "choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}


def echo(body: Body) -> Answer:
    """Says what the last message said."""
    return 200, says(f" re: {body['messages'][-1]['content']}\n")


class Endpoint:
    """Answers every POST with the next reply of its script, the last one forever, and GET with ``models``."""

    def __init__(self, *script: Reply, models: Answer = (200, {"data": [{"id": "tiny"}]}), port: int = 0) -> None:
        self.bodies: list[Body] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.answer(*models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    reply = script[min(len(outer.bodies), len(script) - 1)]
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.answer(*reply(body))

            def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def chat(text: str) -> tuple[Message, ...]:
    return (Message("system", "be brief"), Message("user", text))


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def text_of(completion: Completion | NoAnswer | None) -> str:
    """Of a chat that was answered."""
    assert isinstance(completion, Completion)
    return completion.text
