"""A judge over a bare socket that can do what an HTTP library would not let it."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

Body = dict[str, Any]
Act = Callable[[socket.socket, Body, threading.Event], None]
"""What is done with a connection whose request was read; the event is set when the server closes."""


class FaultyServer:
    """Does with each judging request the next of ``acts``, with the last one for ever; ready for whoever probes, who is
    told ``info``."""

    def __init__(self, *acts: Act, port: int = 0, info: bytes = b'{"status": "ready"}') -> None:
        self.asked: list[Body] = []
        self._info = info
        self._acts = acts
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        # Closing alone does not wake the thread that accepts.
        with suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                read = read_request(connection)
                if read is None:
                    return
                method, body = read
                if method == "GET":
                    connection.sendall(reply(200, self._info))
                    return
                with self._lock:
                    act = self._acts[min(len(self.asked), len(self._acts) - 1)]
                    self.asked.append(body)
                act(connection, body, self._closing)
            except OSError:
                pass  # the client went first


def read_request(connection: socket.socket) -> tuple[str, Body] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return None
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    fields = dict(line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields.get("content-length", "0")):
        body += connection.recv(65536)
    return head.split(b" ", 1)[0].decode(), json.loads(body) if body else {}


def reply(status: int, content: bytes, headers: Mapping[str, str] | None = None, length: int | None = None) -> bytes:
    fields = {"Content-Length": len(content) if length is None else length, "Connection": "close"} | dict(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + content


def verdicts(body: Body, guard: str = "scripted@1") -> list[dict[str, Any]]:
    """The right answer: whoever says "bad" is unsafe."""
    return [
        {
            "id": item["id"],
            "guard": guard,
            "response_safety": "unsafe" if "bad" in item["conversation"][-1]["content"] else "safe",
            "refusal": "no",
        }
        for item in body["items"]
    ]


def answering(change: Callable[[Sequence[dict[str, Any]]], object] = list, guard: str = "scripted@1") -> Act:
    """The right answer, or what ``change`` makes of its verdicts."""

    def act(connection: socket.socket, body: Body, closing: threading.Event) -> None:
        connection.sendall(reply(200, json.dumps({"verdicts": change(verdicts(body, guard))}).encode()))

    return act


honest = answering()


def saying(status: int, content: bytes, headers: Mapping[str, str] | None = None) -> Act:
    def act(connection: socket.socket, body: Body, closing: threading.Event) -> None:
        connection.sendall(reply(status, content, headers))

    return act


def _whole(body: Body) -> bytes:
    return json.dumps({"verdicts": verdicts(body)}).encode()


def reset_mid_body(connection: socket.socket, body: Body, closing: threading.Event) -> None:
    content = _whole(body)
    connection.sendall(reply(200, content[: len(content) // 2], length=len(content)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closed_mid_body(connection: socket.socket, body: Body, closing: threading.Event) -> None:
    content = _whole(body)
    connection.sendall(reply(200, content[: len(content) // 2], length=len(content)))


def truncated_json(connection: socket.socket, body: Body, closing: threading.Event) -> None:
    content = _whole(body)
    connection.sendall(reply(200, content[: len(content) // 2]))


def hang(connection: socket.socket, body: Body, closing: threading.Event) -> None:
    closing.wait()


def slow_drip(connection: socket.socket, body: Body, closing: threading.Event) -> None:
    """A byte every now and then: no single read ever waits long."""
    content = _whole(body)
    connection.sendall(reply(200, b"", length=len(content)))
    for i in range(len(content)):
        if closing.wait(0.05):
            return
        connection.sendall(content[i : i + 1])
