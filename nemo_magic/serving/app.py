"""The HTTP side: requests of OpenAI's clients become generation requests, and results their replies.

    GET  /v1/models, /v1/models/{id}
    POST /v1/completions        texts or ids; ``echo`` with ``logprobs`` scores a prompt
    POST /v1/chat/completions   by the tokenizer's own chat template; what messages spell is never a control token
    GET  /healthz               200 while the process lives
    GET  /readyz                200 while requests are accepted, 503 while the model loads or the server ends

All but the last two need the token, where there is one. An error names the field that it is about.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from nemo_magic.backports import timeout
from nemo_magic.config.serving import ServeConfig
from nemo_magic.game.episode import Message
from nemo_magic.net.auth import Credentials, is_authorised
from nemo_magic.net.body import read_body, refuse_crowded, while_connected
from nemo_magic.serving.engine import GenerationRequest, GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer, Tokens
from nemo_magic.serving.protocol import ApiError, ChatRequest, CompletionRequest, parse
from nemo_magic.serving.replies import ChatChoice, Reply, TextChoice
from nemo_magic.serving.request_queue import RequestQueue

DEFAULT_TOKENS = 16
"""Length of a completion whose request has no ``max_tokens``; OpenAI's number."""

NEUTRALISED = "X-Neutralised-Tokens"
"""Header of a chat's reply: how many control tokens its messages spelled. They were read as text."""

_SEEDS = 2**64
_MAX_FIELDS = 10_000
"""JSON values of a request beside its token ids: fields, messages and their parts."""

T = TypeVar("T")


def create_app(cfg: ServeConfig, queue: RequestQueue, max_response: int) -> FastAPI:
    """The application. ``max_response``: tokens of a chat's response whose request sets no limit.

    Raises what ``cfg.token`` raises.
    """
    token = cfg.token()
    app = FastAPI(title="nemo-magic serve", openapi_url=None)
    created = int(time.time())
    tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def require_token(credentials: Credentials) -> None:
        if not is_authorised(credentials, token):
            raise ApiError(401, "wrong or missing bearer token", code="invalid_api_key")

    protected = [Depends(require_token)]

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body(), error.status_code)

    @app.head("/healthz")
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/readyz")
    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        queue.ready()
        return {"status": "ready", "model": cfg.name}

    @app.get("/v1/models", dependencies=protected)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card()]}

    @app.get("/v1/models/{name:path}", dependencies=protected)
    async def model(name: str) -> dict[str, Any]:
        check_model(name)
        return model_card()

    def model_card() -> dict[str, Any]:
        _, positions = queue.ready()
        return {
            "id": cfg.name,
            "object": "model",
            "created": created,
            "owned_by": "nemo-magic",
            "max_model_len": positions,
        }

    def check_model(name: str) -> None:
        if name != cfg.name:
            raise ApiError(404, f"model: there is no {name!r} here, only {cfg.name!r}", "model", "model_not_found")

    async def read(request: Request, positions: int) -> bytes:
        """The body, of which no value is made unless all of them can be of use."""
        body = await read_body(request, cfg.max_body_mb, "serve.max_body_mb")
        refuse_crowded(body, cfg.max_prompts * positions + _MAX_FIELDS)
        return body

    async def in_turn(work: Callable[[], T]) -> T:
        """The result of ``work`` that needs the tokenizer: one at a time, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(tokenizing, work)

    async def answer(reply: Reply, body: CompletionRequest | ChatRequest, headers: dict[str, str]) -> Response:
        if not body.stream:
            return JSONResponse(await in_turn(reply.body), headers=headers)
        kind = "chat.completion.chunk" if isinstance(body, ChatRequest) else reply.kind
        events = await in_turn(lambda: list(reply.events(kind, body.streams_usage)))
        return StreamingResponse(iter(events), media_type="text/event-stream", headers=headers)

    async def generate(jobs: Sequence[GenerationRequest]) -> list[GenerationResult]:
        futures = [asyncio.wrap_future(future) for future in queue.submit(jobs)]
        try:
            async with timeout(cfg.request_timeout):
                results = await asyncio.gather(*futures)
        except asyncio.TimeoutError:
            reason = f"not answered within serve.request_timeout={cfg.request_timeout:g} s"
            raise ApiError(503, reason, soon=True) from None
        finally:
            for future in futures:
                future.cancel()
        if not all(result.finite for result in results):
            raise ApiError(500, f"{cfg.name}: the model's logits are not finite, its weights are damaged or diverged")
        return results

    @app.post("/v1/completions", dependencies=protected)
    async def completions(request: Request) -> Response:
        tokenizer, positions = queue.ready()
        body = parse(CompletionRequest, await read(request, positions))
        check_model(body.model)
        prompts, choices = body.prompts, body.choices
        if len(prompts) * choices > cfg.max_prompts:
            wrong = "prompt" if choices == 1 else "n"
            times = "" if choices == 1 else f" times n={choices}"
            raise ApiError(413, f"{wrong}: {len(prompts)} prompts{times}, serve.max_prompts={cfg.max_prompts}", wrong)
        size = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        tokenized = await in_turn(lambda: [_tokenize(tokenizer, prompt, size, positions) for prompt in prompts])
        rows = [tokens for tokens in tokenized for _ in range(choices)]
        seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed
        jobs = [
            GenerationRequest(tokens.ids, size, body.sampling, (seed + i) % _SEEDS, body.logprobs)
            for i, tokens in enumerate(rows)
        ]
        results = await while_connected(request, generate(jobs))
        stops, scored, echo = body.stops, body.logprobs is not None, bool(body.echo)
        reply = Reply(
            cfg.name,
            "text_completion",
            "cmpl",
            [
                TextChoice(tokenizer, i, tokens, result, stops, scored, echo)
                for i, (tokens, result) in enumerate(zip(rows, results, strict=True))
            ],
            sum(len(tokens.ids) for tokens in tokenized),
            sum(len(result.response) for result in results),
        )
        return await answer(reply, body, {})

    @app.post("/v1/chat/completions", dependencies=protected)
    async def chat_completions(request: Request) -> Response:
        tokenizer, positions = queue.ready()
        body = parse(ChatRequest, await read(request, positions))
        check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: asks for logprobs, which is not true", "top_logprobs")
        if body.choices > cfg.max_prompts:
            raise ApiError(413, f"n: {body.choices}, serve.max_prompts={cfg.max_prompts}", "n")
        ids, neutralised = await in_turn(lambda: _tokenize_chat(tokenizer, body))
        size = max(1, min(max_response, positions - len(ids))) if body.limit is None else body.limit
        _check_length(len(ids), size, positions, "messages")
        seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed
        top = (body.top_logprobs or 0) if body.logprobs else None
        jobs = [GenerationRequest(ids, size, body.sampling, (seed + i) % _SEEDS, top) for i in range(body.choices)]
        results = await while_connected(request, generate(jobs))
        choices = [ChatChoice(tokenizer, i, result, body.stops, top is not None) for i, result in enumerate(results)]
        generated = sum(len(result.response) for result in results)
        reply = Reply(cfg.name, "chat.completion", "chatcmpl", choices, len(ids), generated)
        return await answer(reply, body, {NEUTRALISED: str(neutralised)} if neutralised else {})

    return app


def _tokenize_chat(tokenizer: OffsetTokenizer, body: ChatRequest) -> tuple[tuple[int, ...], int]:
    """The chat's ids, and how many control tokens its messages spelled, which are text there."""
    before = tokenizer.chat.neutralised
    try:
        ids = tokenizer.chat.prompt_ids([Message(message.role, message.text) for message in body.messages])
    except Exception as error:  # a template refuses what it was not written for, in its own words
        raise ApiError(400, f"messages: the chat template refuses them: {error}", "messages") from error
    return ids, tokenizer.chat.neutralised - before


def _tokenize(tokenizer: OffsetTokenizer, prompt: str | list[int], size: int, positions: int) -> Tokens:
    """A prompt that with ``size`` more tokens fits the model. Ids that do not are not decoded."""
    if not isinstance(prompt, str):
        _check_length(len(prompt), size, positions)
        if wrong := [index for index in prompt if not 0 <= index < tokenizer.chat.size]:
            raise ApiError(400, f"prompt: {wrong[0]} is no token, the tokenizer has {tokenizer.chat.size}", "prompt")
    tokens = tokenizer.of_text(prompt) if isinstance(prompt, str) else tokenizer.of_ids(prompt)
    if not tokens.ids:
        raise ApiError(400, "prompt: is empty", "prompt")
    _check_length(len(tokens.ids), size, positions)
    return tokens


def _check_length(length: int, size: int, positions: int, field: str = "prompt") -> None:
    """Raises ApiError (400) if ``length`` tokens and ``size`` more do not fit the model."""
    if length + size > positions:
        wrong = field if length >= positions else "max_tokens"
        reason = f"this model's maximum context length is {positions} tokens; {field}: {length}, max_tokens: {size}"
        raise ApiError(400, f"{wrong}: {reason}", wrong, "context_length_exceeded")
