"""What all servers promise, whatever they serve: over real sockets, with clients that mean it ill."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.net import server as net_server
from nemo_magic.net.hosts import listen
from nemo_magic.net.server import HttpServer, LoopbackOnly, OnceAMinute

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@contextmanager
def running(max_connections: int = 100, has_token: bool = True) -> Iterator[tuple[str, int]]:
    """The address of a server."""
    server = HttpServer(
        hello, has_token=has_token, max_connections=max_connections, key="x.max_connections", grace=5, lifespan="off"
    )
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    data = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(65536):
            data += more
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET", b"HTTP/1.1 408"),
        (b"GET / HTTP/1.1\r\n", b"HTTP/1.1 408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", b"HTTP/1.1 408"),
        (REQUEST % 1000, b"HTTP/1.1 200"),
        (REQUEST % 1000 + b"half of it", b"HTTP/1.1 200"),
        (REQUEST % 0, b"HTTP/1.1 200"),
        (REQUEST % 0 + b"GET / HT", b"HTTP/1.1 200"),
    ],
)
def test_who_does_not_finish_a_request_is_not_waited_for(
    sent: bytes, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_server, "HEADER_TIMEOUT", 0.05)
    with running() as address, connect(address) as connection:
        connection.sendall(sent)
        assert read_all(connection).startswith(answer)


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", REQUEST % 1_000_000, b""])
def test_a_byte_now_and_then_buys_no_time(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_server, "HEADER_TIMEOUT", 0.05)
    with running() as address, connect(address) as connection:
        connection.sendall(begin)
        connection.settimeout(0.01)
        for _ in range(2000):
            try:
                connection.send(b"G")
                if not connection.recv(65536):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError("it still listens")


def test_more_connections_than_allowed_are_told_to_come_again_and_that_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(max_connections=3) as address:
        idle = [connect(address) for _ in range(3)]
        for _ in range(20):
            with connect(address) as refused:
                assert read_all(refused).startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        idle.pop().close()
        while True:  # until the server has seen that it is gone
            with connect(address) as taken:
                taken.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if read_all(taken).startswith(b"HTTP/1.1 200"):
                    break
        for connection in idle:
            connection.close()
    said = [record.getMessage() for record in caplog.records if "connections are open" in record.getMessage()]
    assert said == ["3 connections are open, x.max_connections=3: others are told to come again"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED])
def test_out_of_descriptors_it_waits_says_so_once_and_goes_on(
    fault: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept, faults = asyncio.SelectorEventLoop.sock_accept, iter(range(50))

    async def failing(loop: Any, listener: Any) -> Any:
        for _ in faults:
            raise OSError(fault, "made up")
        return await accept(loop, listener)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_accept", failing)
    monkeypatch.setattr(net_server, "ACCEPT_PAUSE", 0.0)
    with running() as address, connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == (0 if fault == errno.ECONNABORTED else 1)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 10_000))
def test_connections_leave_descriptors_for_the_rest(wanted: int, soft: int, more: int) -> None:
    limits = [(soft, soft + more)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: limits[-1])
        patch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
        room = net_server._room_for(wanted)
    assert 1 <= room <= wanted
    assert soft <= limits[-1][0] <= limits[-1][1] == soft + more
    assert room == 1 or room < limits[-1][0]


# --- browsers


def answer_to(method: str, headers: list[tuple[bytes, bytes]]) -> int:
    """The status of a request to a server without a token."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": method, "headers": headers}
    asyncio.run(LoopbackOnly(hello)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "127.3.2.1", "[::1]:8080"]
)
def test_this_machine_may_be_named_in_any_way(host: str) -> None:
    assert answer_to("GET", [(b"host", host.encode())]) == 200
    assert answer_to("GET", []) == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "host",
    ["site.example", "site.example:8080", "127.0.0.1.site.example", "localhost.site.example", "0.0.0.0:8080", "[::]",
     "[", "", "10.0.0.1", "localhost@site.example", "\xff"],
)  # fmt: skip
def test_a_name_that_is_made_to_point_here_is_refused(method: str, host: str) -> None:
    assert answer_to(method, [(b"host", host.encode("latin-1")), (b"content-type", b"application/json")]) == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-type", b"application/json")], 200),
        ([(b"content-type", b"Application/JSON; charset=utf-8")], 200),
        ([], 200),
        ([(b"content-type", b"text/plain")], 415),
        ([(b"content-type", b"text/plain; application/json")], 415),
        ([(b"content-type", b"application/x-www-form-urlencoded")], 415),
        ([(b"content-type", b"multipart/form-data; boundary=x")], 415),
        ([(b"content-type", b"; application/json")], 415),
        ([(b"origin", b"http://site.example")], 415),
        ([(b"origin", b"null")], 415),
    ],
)
def test_what_a_page_can_send_unasked_is_refused(method: str, headers: list[tuple[bytes, bytes]], status: int) -> None:
    assert answer_to(method, [(b"host", b"localhost"), *headers]) == status


def test_a_server_with_a_token_is_asked_by_any_name_and_one_without_only_by_its_own() -> None:
    for has_token, status in ((True, b"200"), (False, b"421")):
        with running(has_token=has_token) as address, connect(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 " + status)


# --- the log


def test_what_repeats_is_logged_once_a_minute_with_how_often_and_news_at_once() -> None:
    now = [0.0]
    once = OnceAMinute(lambda: now[0])

    def passes(message: str, level: int = logging.WARNING, *args: object) -> str | None:
        record = logging.LogRecord("x", level, "", 0, message, args, None)
        return record.getMessage() if once.filter(record) else None

    assert passes("full: %d", logging.WARNING, 1) == "full: 1"
    assert [passes("full: %d", logging.WARNING, n) for n in range(1000)] == [None] * 1000
    assert passes("another") == "another"
    assert [passes("as usual", logging.INFO) for _ in range(2)] == ["as usual"] * 2
    now[0] = 60.0
    assert passes("full: %d", logging.WARNING, 7) == "full: 7 (1000 more like it since)"
    assert passes("full: %d", logging.WARNING, 8) is None


def test_requests_that_are_none_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "uvicorn.error")
    with running() as address:
        for _ in range(20):
            with connect(address) as connection:
                connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
                assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
