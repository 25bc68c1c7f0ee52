"""The reward server: one guard behind HTTP.

    POST /v1/judge   JudgeBatch → JudgeAnswer; a failing item is answered with unknown fields, the others are judged
    GET  /v1/guard   GuardInfo: who judges here (behind the token, so that a client can check its own)
    GET  /healthz    200 while the process lives
    GET  /readyz     200 once the guard is loaded, 503 before, 500 if it failed to load

``python -m nemo_magic.judge.server --config judge.json`` runs one; ``serve`` is the same from Python.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import ValidationError

from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards import build_guard
from nemo_magic.judge.guards.base import Guard, describe, guard_id
from nemo_magic.judge.protocol import (
    GuardInfo,
    JudgeAnswer,
    JudgeBatch,
    JudgeItem,
    JudgeVerdict,
    match_answers,
    unknown_verdict,
)

logger = logging.getLogger(__name__)

WATCH_INTERVAL = 0.5
"""Seconds between looks at whether the parent still lives."""


def create_app(guard: Guard, cfg: JudgeConfig) -> FastAPI:
    """The application; the guard starts with it and is closed with it.

    Raises ValueError if the token is missing, or if none is configured although ``judge.server.host`` is no loopback
    address.
    """
    limits = cfg.server
    token = cfg.token()
    if token is None and not limits.is_loopback:
        raise ValueError(f"judge.server.host={limits.host} can be reached by others: judge.token_env has to be set")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = loading = asyncio.create_task(guard.start())
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await guard.close()

    app = FastAPI(title="nemo-magic judge", lifespan=lifespan)

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token is not None and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "wrong or missing bearer token", headers={"WWW-Authenticate": "Bearer"})

    def loaded() -> None:
        loading: asyncio.Task[None] = app.state.loading
        if not loading.done():
            raise HTTPException(503, "the guard is loading", headers={"Retry-After": "1"})
        if (error := loading.exception()) is not None:
            raise HTTPException(500, f"the guard failed to start: {describe(error)}")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", dependencies=[Depends(loaded)])
    async def readyz() -> dict[str, str]:
        return {"status": "ready", "guard": guard_id(guard)}

    @app.get("/v1/guard", dependencies=[Depends(authorised), Depends(loaded)])
    async def info() -> GuardInfo:
        return GuardInfo(guard=guard_id(guard), max_items=limits.max_items, max_chars=limits.max_chars)

    body_schema = {"content": {"application/json": {"schema": JudgeBatch.model_json_schema()}}, "required": True}

    @app.post(
        "/v1/judge",
        response_model=JudgeAnswer,
        dependencies=[Depends(authorised), Depends(loaded)],
        openapi_extra={"requestBody": body_schema},
    )
    async def judge(request: Request) -> Response:
        # Parsed here and not by FastAPI: the size is checked before the body is in memory, and JSON strictly as JSON.
        items = _parse(await _read(request, limits), limits)
        answer = JudgeAnswer(verdicts=tuple(await _judge(guard, items)))
        return Response(answer.to_json(), media_type="application/json")

    return app


async def _read(request: Request, limits: JudgeServerConfig) -> bytes:
    limit = int(limits.max_body_mb * 1e6)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"the body is longer than {limits.max_body_mb} MB")
    return bytes(body)


def _parse(body: bytes, limits: JudgeServerConfig) -> Sequence[JudgeItem]:
    try:
        items = JudgeBatch.model_validate_json(body).items
    except ValidationError as error:
        # Without the input: texts under judgement belong in no error message or log.
        raise HTTPException(422, error.errors(include_url=False, include_context=False, include_input=False)) from None
    if len(items) > limits.max_items:
        raise HTTPException(413, f"{len(items)} items in one request, at most {limits.max_items} are taken")
    for item in items:
        if item.chars > limits.max_chars:
            raise HTTPException(
                413, f"item {item.id!r} has {item.chars} characters, at most {limits.max_chars} are taken"
            )
    return items


async def _judge(guard: Guard, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
    try:
        return match_answers(items, await guard.judge(items))
    except GuardUnavailable as error:
        raise HTTPException(503, f"the guard is away: {error}", headers={"Retry-After": "1"}) from error
    except Exception as error:
        logger.exception("guard %s failed on a batch of %d", guard_id(guard), len(items))
        return [unknown_verdict(item, guard_id(guard), describe(error)) for item in items]


def serve(cfg: JudgeConfig, port_file: Path | None = None, parent_pid: int | None = None) -> None:
    """Serve ``cfg.guard`` until SIGTERM or SIGINT; requests in flight are finished first.

    The port is written to ``port_file`` once it is bound. With ``parent_pid`` the server ends when that process is no
    longer its parent. Raises ValueError for a configuration that cannot be served, OSError if the address cannot be
    bound, RuntimeError if the guard fails to start.
    """
    app = create_app(build_guard(cfg.guard, cfg.guard_config), cfg)
    with listen(cfg.server.host, cfg.server.port) as listener:
        port = listener.getsockname()[1]
        if port_file is not None:
            _write_atomically(port_file, f"{port}\n")
        logger.info("judge %s on http://%s:%d", cfg.guard, cfg.server.host, port)
        with suppress(KeyboardInterrupt):  # uvicorn has already shut down in order
            asyncio.run(_serve(app, listener, cfg.server.drain_timeout, parent_pid))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError if the address cannot be bound."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # Connections inherit it. asyncio sets it only where it knows the protocol's number, and without it every answer
    # waits some 40 ms for the client to acknowledge its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(app: FastAPI, listener: socket.socket, drain_timeout: int, parent_pid: int | None) -> None:
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=drain_timeout
    )
    server = uvicorn.Server(config)
    watch = asyncio.create_task(_watch(app, server, parent_pid))
    await server.serve(sockets=[listener])
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    if (error := _failure(app)) is not None:
        raise RuntimeError(f"the guard failed to start: {describe(error)}") from error


async def _watch(app: FastAPI, server: uvicorn.Server, parent_pid: int | None) -> None:
    """Stop the server when it has nobody to serve, or nothing to serve with."""
    # The parent's pid and not PR_SET_PDEATHSIG: that signal comes when the parent's forking *thread* ends.
    while _failure(app) is None and (parent_pid is None or os.getppid() == parent_pid):
        await asyncio.sleep(WATCH_INTERVAL)
    server.should_exit = True


def _failure(app: FastAPI) -> BaseException | None:
    """Why the guard did not start; None while it loads, once it runs, and when loading was cut short."""
    loading: asyncio.Task[None] | None = getattr(app.state, "loading", None)
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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = json.loads(args.config.read_text())
    server = JudgeServerConfig(**settings.pop("server", {}))
    serve(JudgeConfig(**settings, server=server), args.port_file, args.parent_pid)


if __name__ == "__main__":
    main()
