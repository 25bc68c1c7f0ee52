"""What every HTTP server here has in common: how many may ask it, for how long and from where, and how it ends.

One client that never finishes a request, or a thousand that come at once, cost the others nothing but the wait.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import resource
import socket
import sys
import time
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nemo_magic.net.hosts import is_loopback

logger = logging.getLogger(__name__)

HEADER_TIMEOUT = 20.0
"""Seconds for the head of a request, from the connection or the reply before it; then the connection is closed."""
STALL_TIMEOUT = 60.0
"""Seconds that a client may leave a reply lying."""
ACCEPT_PAUSE = 1.0
"""Seconds until connections are accepted again, after the system had no descriptor for one."""

_RESERVED = 256
"""Descriptors that are not for connections: files, and what the server itself asks."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpServer(uvicorn.Server):
    """Serves ``app`` on the sockets that ``run`` or ``serve`` are given; they return in order after SIGTERM or SIGINT.

    ``has_token``: requests carry one; else only this machine can ask, and what a web page sends from it is refused.
    ``max_connections``: further ones are told to come again; ``key``: its configuration key. ``grace``: seconds for
    requests in flight at the end. ``lifespan``: uvicorn's, ``on`` or ``off``.
    """

    def __init__(
        self, app: ASGIApp, *, has_token: bool, max_connections: int, key: str, grace: int, lifespan: str
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app if has_token else LoopbackOnly(app),
                http=_PatientProtocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan=lifespan,  # type: ignore[arg-type]
                timeout_graceful_shutdown=grace,
            )
        )
        self._max_connections = _room_for(max_connections)
        self._limit = f"{key}={max_connections}"
        if self._max_connections < max_connections:
            self._limit = f"what the limit of descriptors (ulimit -n) leaves of {self._limit}"
        self._accepting: list[asyncio.Task[None]] = []
        self._complaints = OnceAMinute()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until asked to end. Raises what the application's lifespan raises."""
        loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", __name__)]
        for each in loggers:
            each.addFilter(self._complaints)
        try:
            await super().serve(sockets)
        finally:
            for each in loggers:
                each.removeFilter(self._complaints)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin the application's lifespan and accept connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(uvicorn.config.STARTUP_FAILURE)
        # uvicorn would leave accepting to asyncio, which takes whatever comes, and where the system is out of
        # descriptors tries, and logs, 2048 times a second.
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or []]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let requests in flight end, and end the application's lifespan."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's; but a server that ended in order, as it was asked to, has not died of the signal."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
                if len(self.server_state.connections) < self._max_connections:
                    await loop.connect_accepted_socket(self._protocol, connection)
                else:
                    _turn_away(connection)
                    logger.warning(
                        "%d connections are open, %s: others are told to come again",
                        len(self.server_state.connections),
                        self._limit,
                    )
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    logger.warning("no connection can be accepted: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_PAUSE)
                # Any other is this connection's own fault.

    def _protocol(self) -> _PatientProtocol:
        return _PatientProtocol(self.config, self.server_state, self.lifespan.state)


class _PatientProtocol(H11Protocol):
    """A connection whose client has ``HEADER_TIMEOUT`` for each request and ``STALL_TIMEOUT`` to read on."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self._deadline is not None:
            self._deadline.cancel()

    def on_response_complete(self) -> None:
        # First, as the next request may have come already. What is left of a body counts for nothing now.
        self._wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _wait_for_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        if not self.transport.is_closing() and self.conn.trailing_data[0]:
            self.transport.write(_LATE)
        self.transport.close()
        # Closing waits for a client that does not read.
        self._deadline = self.loop.call_later(1.0, self.transport.abort)


class LoopbackOnly:
    """Refuses what a web page in a browser on this machine could send to a server without a token.

    A page may send requests anywhere as long as they are plain text, and a name of its own that points to this machine
    makes it read the answers too. So the Host has to be a loopback address or ``localhost``, and a body JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's answer, or 421 for another host and 415 for another type of body."""
        refusal = _refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, message = refusal
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


def _refusal(scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if (host := headers.get(b"host")) is not None and not is_loopback(_name(host)):
        return 421, "the Host is not this machine's: a server without a token answers to localhost and 127.0.0.1 only"
    if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        kind = headers.get(b"content-type", "")
        # Clients that name no type are no browsers, which say where they come from.
        if kind.partition(";")[0].strip().lower() != "application/json" if kind else b"origin" in headers:
            return 415, "the body has to be JSON: send Content-Type: application/json"
    return None


def _name(host: str) -> str:
    """The host of a Host header, without its port; empty where it is none."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


class OnceAMinute(logging.Filter):
    """Lets a warning pass once a minute, with the number of those like it since; ``clock`` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write ``record``. Alike are those of one message, whatever its arguments, and type of error."""
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, record.msg, record.exc_info[0] if record.exc_info else None)
        now = self._clock()
        until, held_back = self._seen.get(kind, (now, 0))
        if now < until:
            self._seen[kind] = (until, held_back + 1)
            return False
        if len(self._seen) > 1000:  # messages that are never the same
            self._seen.clear()
        self._seen[kind] = (now + 60.0, 0)
        if held_back:
            record.msg, record.args = f"{record.getMessage()} ({held_back} more like it since)", ()
        return True


def _turn_away(connection: socket.socket) -> None:
    """Say 503 and close, at once: what the client makes of it is its own business."""
    with connection, suppress(OSError):
        # With something unread, the end would overtake the answer.
        with suppress(BlockingIOError):
            connection.recv(65536)
        connection.send(_FULL)


def _room_for(connections: int) -> int:
    """How many of ``connections`` the process may have open; its limit of descriptors is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return min(connections, max(1, soft - min(_RESERVED, soft // 2)))
    return connections
