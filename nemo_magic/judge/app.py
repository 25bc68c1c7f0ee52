"""The reward server: one guard behind HTTP.

    POST /v1/judge      JudgeBatch → JudgeAnswer; a failing item is answered with unknown fields, the others are judged
    GET  /v1/guard      GuardInfo: who judges here
    GET  /metrics       for Prometheus
    GET  /healthz       200 while the process lives
    GET  /readyz        200 while the guard judges a probe, 503 while it loads or does not, 500 if it failed to load
    GET  /openapi.json  the description of all this

All but the two about health need the token, where there is one. Every request gets an answer or the reason why not,
also when the server is asked to end meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ValidationError

from nemo_magic.backports import timeout
from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards.base import Guard, describe, guard_id
from nemo_magic.judge.metrics import Metrics
from nemo_magic.judge.protocol import (
    GuardInfo,
    JudgeAnswer,
    JudgeBatch,
    JudgeItem,
    JudgeVerdict,
    has_unknown,
    match_answers,
    unknown_verdict,
)
from nemo_magic.net.auth import Credentials, is_authorised
from nemo_magic.net.body import read_body, refuse_crowded, while_connected
from nemo_magic.net.faults import one_line

logger = logging.getLogger(__name__)

PROBE_TIMEOUT = 30.0
MAX_VALUES = 500
"""JSON values of an item, on average of those that a request may have: a conversation of a hundred messages."""
MAX_FAULTS = 10
"""Errors that a refusal lists; it counts the rest."""

_SEE_LOG = "the server's log says why"

_SOON = {"Retry-After": "1"}


class Refusal(BaseModel):
    """Why there is no verdict."""

    detail: str | list[dict[str, Any]]


@dataclass
class JudgeState:
    """A running server. ``problem``: why the guard does not judge, in words of this server's own, as anyone may ask;
    ``ending`` is set when the server has to end."""

    loading: asyncio.Task[None]
    problem: str | None = "not probed yet"
    pending: int = 0
    ending: asyncio.Event = field(default_factory=asyncio.Event)


def create_app(guard: Guard, cfg: JudgeConfig) -> FastAPI:
    """The application, which starts and closes the guard.

    Raises ValueError if the token's environment variable is empty, or if no token is configured although
    ``judge.server.host`` is no loopback address.
    """
    limits = cfg.server
    token = cfg.token()
    if token is None and not limits.is_loopback:
        raise ValueError(f"judge.server.host={limits.host} can be reached by others: judge.token_env has to be set")
    metrics = Metrics()
    guard.set_telemetry(metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.judge = state = JudgeState(asyncio.create_task(guard.start()))
        probing = asyncio.create_task(_keep_probing(guard, state, metrics, limits.probe_interval))
        yield
        probing.cancel()
        state.loading.cancel()
        await asyncio.gather(probing, state.loading, return_exceptions=True)
        await guard.close()

    # Without FastAPI's pages, which load scripts from elsewhere.
    app = FastAPI(title="nemo-magic judge", lifespan=lifespan, responses={503: {"model": Refusal}}, openapi_url=None)

    def require_token(credentials: Credentials) -> None:
        if not is_authorised(credentials, token):
            raise HTTPException(401, "wrong or missing bearer token", headers={"WWW-Authenticate": "Bearer"})

    def require_loaded(request: Request) -> None:
        state: JudgeState = request.app.state.judge
        if not state.loading.done():
            raise HTTPException(503, "the guard is loading", headers=_SOON)
        if (error := state.loading.exception()) is not None:
            raise HTTPException(500, f"the guard failed to start ({type(error).__name__}): {_SEE_LOG}")

    unauthorised: dict[int | str, dict[str, Any]] = {
        401: {"model": Refusal, "description": "wrong or missing bearer token"}
    }

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/readyz", dependencies=[Depends(require_loaded)], include_in_schema=False)
    @app.get("/readyz", dependencies=[Depends(require_loaded)], responses={500: {"model": Refusal}})
    async def readyz(request: Request) -> dict[str, str]:
        state: JudgeState = request.app.state.judge
        if state.problem is not None:
            raise HTTPException(503, f"the guard does not judge: {state.problem}", headers=_SOON)
        return {"status": "ready", "guard": guard_id(guard)}

    @app.get("/openapi.json", dependencies=[Depends(require_token)], include_in_schema=False)
    async def description() -> dict[str, Any]:
        return app.openapi()

    @app.get("/metrics", dependencies=[Depends(require_token)], responses=unauthorised, response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.page(), media_type=metrics.content_type)

    @app.get("/v1/guard", dependencies=[Depends(require_token), Depends(require_loaded)], responses=unauthorised)
    async def info() -> GuardInfo:
        answers = tuple(sorted(guard.answers))
        return GuardInfo(guard=guard_id(guard), answers=answers, max_items=limits.max_items, max_chars=limits.max_chars)

    body_schema = {"content": {"application/json": {"schema": JudgeBatch.model_json_schema()}}, "required": True}

    @app.post(
        "/v1/judge",
        response_model=JudgeAnswer,
        dependencies=[Depends(require_token), Depends(require_loaded)],
        responses=unauthorised | {status: {"model": Refusal} for status in (408, 413, 422)},
        openapi_extra={"requestBody": body_schema},
    )
    async def judge(request: Request) -> Response:
        state: JudgeState = request.app.state.judge
        with _count_status(metrics):
            # Parsed here and not by FastAPI: the size is checked before the body is in memory, JSON strictly as JSON.
            items = _parse(await read_body(request, limits.max_body_mb, "judge.server.max_body_mb"), limits)
            began = time.monotonic()
            with _admit(state, metrics, len(items), limits.max_pending):
                judging = _finish_in_time(_judge(guard, items), state, limits.request_timeout)
                verdicts = await while_connected(request, judging)
            seconds = time.monotonic() - began
            metrics.seconds.observe(seconds)
            unknown = metrics.count_verdicts(guard_id(guard), items, verdicts)
            fields: dict[str, Any] = {"items": len(items), "unknown": unknown, "seconds": round(seconds, 4)}
            if limits.log_texts:
                fields["texts"] = [item.model_dump(mode="json", exclude_none=True) for item in items]
            logger.info("judged", extra={"fields": fields})
            return Response(JudgeAnswer(verdicts=tuple(verdicts)).to_json(), media_type="application/json")

    return app


@contextmanager
def _count_status(metrics: Metrics) -> Iterator[None]:
    """Count how a request ends."""
    status = 500
    try:
        yield
        status = 200
    except HTTPException as refusal:
        status = refusal.status_code
        raise
    finally:
        metrics.requests.labels(status=str(status)).inc()


@contextmanager
def _admit(state: JudgeState, metrics: Metrics, items: int, most: int) -> Iterator[None]:
    """Count ``items`` as pending within the context. Raises HTTPException (503) if they are too many."""
    # A request that alone exceeds the limit is accepted when nothing else is pending.
    if state.pending and state.pending + items > most:
        raise HTTPException(503, f"{state.pending} items are under judgement, at most {most} may be", headers=_SOON)
    state.pending += items
    metrics.pending.set(state.pending)
    try:
        yield
    finally:
        state.pending -= items
        metrics.pending.set(state.pending)


def _parse(body: bytes, limits: JudgeServerConfig) -> Sequence[JudgeItem]:
    refuse_crowded(body, MAX_VALUES * limits.max_items)
    try:
        items = JudgeBatch.model_validate_json(body).items
    except ValidationError as error:
        # Without the input: texts under judgement belong in no error message or log.
        faults: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FAULTS]
        if more := error.error_count() - len(faults):
            faults.append({"type": "more", "loc": [], "msg": f"and {more} more errors"})
        raise HTTPException(422, faults) from None
    if len(items) > limits.max_items:
        raise HTTPException(413, f"{len(items)} items in one request, at most {limits.max_items} are taken")
    for item in items:
        if item.chars > limits.max_chars:
            raise HTTPException(
                413, f"item {item.id!r} has {item.chars} characters, at most {limits.max_chars} are taken"
            )
    return items


async def _finish_in_time(work: Any, state: JudgeState, seconds: float) -> list[JudgeVerdict]:
    """The result of ``work``. Raises HTTPException (503) if it takes too long or the server ends before."""
    judging, ending = asyncio.create_task(work), asyncio.create_task(state.ending.wait())
    try:
        await asyncio.wait({judging, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if judging.done():
            verdicts: list[JudgeVerdict] = judging.result()
            return verdicts
        reason = "the server ends" if ending.done() else f"not judged within judge.server.request_timeout={seconds:g} s"
        raise HTTPException(503, reason, headers=_SOON)
    finally:
        for task in (judging, ending):
            task.cancel()
        await asyncio.gather(judging, ending, return_exceptions=True)


async def _judge(guard: Guard, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
    try:
        return match_answers(items, await guard.judge(items), guard_id(guard))
    except GuardUnavailable as error:
        raise HTTPException(503, f"the guard is away: {one_line(str(error))}", headers=_SOON) from error
    except Exception as error:
        logger.exception("guard %s failed on a batch of %d", guard_id(guard), len(items))
        return [unknown_verdict(item, guard_id(guard), describe(error)) for item in items]


async def _keep_probing(guard: Guard, state: JudgeState, metrics: Metrics, interval: float) -> None:
    """Once the guard is loaded, have it judge its probe every ``interval`` seconds."""
    await asyncio.wait({state.loading})
    if (failure := state.loading.exception()) is not None:
        logger.error("the guard failed to start: %s", describe(failure))
        return
    last: str | None = state.problem
    while True:
        problem = await _probe(guard)
        if problem != last:
            logger.log(logging.WARNING if problem else logging.INFO, "probe: %s", problem or "judged")
        last = problem
        state.problem = None if problem is None else f"its probe was not judged, {_SEE_LOG}"
        metrics.ready.set(problem is None)
        # Soon again while something is wrong: clients wait for it.
        await asyncio.sleep(interval if problem is None else min(interval, 1.0))


async def _probe(guard: Guard) -> str | None:
    """Why the guard does not judge its probe; None if it does."""
    item = guard.probe
    try:
        async with timeout(PROBE_TIMEOUT):
            [verdict] = match_answers([item], await guard.judge([item]))
    except asyncio.TimeoutError:
        return f"the probe was not judged within {PROBE_TIMEOUT:g} s"
    except Exception as error:
        return describe(error)
    return f"the probe's verdict is unknown: {verdict.error}" if has_unknown(verdict) else None
