"""A reward server's process: listen, serve, shut down in order.

``python -m nemo_magic.judge.server --config judge.json`` runs one; ``serve`` is the same from Python.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from nemo_magic.judge.app import JudgeState, create_app
from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.guards import build_guard
from nemo_magic.judge.guards.base import describe
from nemo_magic.net.hosts import http_url, listen
from nemo_magic.net.server import HttpServer

logger = logging.getLogger(__name__)

WATCH_INTERVAL = 0.2
"""Seconds between looks at whether the parent still lives, and whether a shutdown's time is over."""


class JsonLines(logging.Formatter):
    """A record as a line of JSON: time, level, logger, message, and the fields of ``extra={"fields": {…}}``.

    ``texts``: with what errors say. A guard's error may quote what it was asked, so that without it a traceback has
    types and places only.
    """

    def __init__(self, texts: bool = False) -> None:
        super().__init__()
        self._texts = texts

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = record.getMessage()
        if record.name == "asyncio" and not self._texts:
            message = message.partition("\n")[0]  # the rest shows a task, with its error
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        } | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)

    def formatException(self, ei: Any) -> str:
        """The traceback, as ``texts`` says."""
        if self._texts:
            return super().formatException(ei)
        parts: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(parts) < 10:
            parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\nafter:\n".join(parts)


def log_to_stderr(texts: bool = False) -> None:
    """Write all logs of this process to stderr as lines of JSON; see JsonLines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(texts))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request to the guard's model


def serve(
    cfg: JudgeConfig,
    port_file: Path | None = None,
    parent_pid: int | None = None,
    say: Callable[[str], None] = logger.info,
) -> None:
    """Serve ``cfg.guard`` until SIGTERM or SIGINT; requests in flight are finished first, or answered with 503.

    ``say`` is called with the address once it is bound, and the port is written to ``port_file``. With ``parent_pid``
    the server ends when that process is no longer its parent.

    Raises ValueError for a configuration that cannot be served, OSError if the address cannot be bound, RuntimeError if
    the guard fails to start.
    """
    app = create_app(build_guard(cfg.guard, cfg.guard_config), cfg)
    with listen(cfg.server.host, cfg.server.port) as listener:
        port = listener.getsockname()[1]
        if port_file is not None:
            _write_atomically(port_file, f"{port}\n")
        say(f"judge {cfg.guard} on {http_url(cfg.server.host, port)}")
        asyncio.run(_serve(app, listener, cfg, parent_pid))


async def _serve(app: FastAPI, listener: socket.socket, cfg: JudgeConfig, parent_pid: int | None) -> None:
    drain_timeout = cfg.server.drain_timeout
    server = HttpServer(
        app,
        has_token=cfg.token_env is not None,
        max_connections=cfg.server.max_connections,
        key="judge.server.max_connections",
        # It would cut connections off at its timeout: requests that still wait are answered before.
        grace=drain_timeout + 5,
        lifespan="on",
    )
    watch = asyncio.create_task(_watch(app, server, drain_timeout, parent_pid))
    await server.serve(sockets=[listener])
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    if (error := _failure(app)) is not None:
        raise RuntimeError(f"the guard failed to start: {describe(error)}") from error


async def _watch(app: FastAPI, server: HttpServer, drain_timeout: int, parent_pid: int | None) -> None:
    """Stop the server when its parent is gone or its guard failed, and end requests that outlast ``drain_timeout``."""
    # The parent's pid and not PR_SET_PDEATHSIG: that signal comes when the parent's forking *thread* ends.
    while not server.should_exit and _failure(app) is None and (parent_pid is None or os.getppid() == parent_pid):
        await asyncio.sleep(WATCH_INTERVAL)
    server.should_exit = True
    deadline = time.monotonic() + drain_timeout
    while (state := _state(app)) is not None and state.pending and time.monotonic() < deadline:
        await asyncio.sleep(WATCH_INTERVAL)
    if state is not None:
        state.ending.set()


def _state(app: FastAPI) -> JudgeState | None:
    state: JudgeState | None = getattr(app.state, "judge", None)
    return state


def _failure(app: FastAPI) -> BaseException | None:
    """Why the guard did not start; None while it loads, once it runs, and when loading was cut short."""
    state = _state(app)
    loading = state.loading if state is not None else None
    return loading.exception() if loading and loading.done() and not loading.cancelled() else None


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the server's own process."""
    parser = argparse.ArgumentParser(prog="python -m nemo_magic.judge.server", description="Run a reward server.")
    parser.add_argument("--config", type=Path, required=True, help="the keys of `judge` as a JSON file")
    parser.add_argument("--port-file", type=Path, help="write the bound port here")
    parser.add_argument("--parent-pid", type=int, help="end when this process is no longer the parent")
    args = parser.parse_args(argv)
    settings = json.loads(args.config.read_text())
    server = JudgeServerConfig(**settings.pop("server", {}))
    log_to_stderr(server.log_texts)
    serve(JudgeConfig(**settings, server=server), args.port_file, args.parent_pid)


if __name__ == "__main__":
    main()
