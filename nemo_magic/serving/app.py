"""The HTTP side: requests of OpenAI's clients become generation requests, and results their replies.

    GET  /v1/models, /v1/models/{id}
    POST /v1/completions        texts or ids; ``echo`` with ``logprobs`` scores a prompt
    POST /v1/chat/completions   by the tokenizer's own chat template
    GET  /healthz               200 while the process lives
    GET  /readyz                200 while requests are accepted, 503 while the model loads or the server ends

All but the last two need the token, where there is one. An error names the field that it is about.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nemo_magic.backports import timeout
from nemo_magic.config.serving import ServeConfig
from nemo_magic.game.episode import Message
from nemo_magic.net.auth import Credentials, is_authorised
from nemo_magic.net.body import read_body, while_connected
from nemo_magic.serving.engine import GenerationRequest, GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer, Tokens
from nemo_magic.serving.protocol import ApiError, ChatRequest, CompletionRequest, parse
from nemo_magic.serving.request_queue import RequestQueue

DEFAULT_TOKENS = 16
"""Length of a completion whose request has no ``max_tokens``; OpenAI's number."""

_SEEDS = 2**64


def create_app(cfg: ServeConfig, queue: RequestQueue, max_response: int) -> FastAPI:
    """The application. ``max_response``: tokens of a chat's response whose request sets no limit.

    Raises what ``cfg.token`` raises.
    """
    token = cfg.token()
    app = FastAPI(title="nemo-magic serve", openapi_url=None)
    created = int(time.time())

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

    def reply(kind: str, prefix: str, choices: list[dict[str, Any]], prompt: int, response: int) -> Response:
        usage = {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response}
        name = f"{prefix}-{secrets.token_hex(12)}"
        body = {"id": name, "object": kind, "created": int(time.time()), "model": cfg.name, "choices": choices}
        return JSONResponse(body | {"usage": usage})

    async def generate(jobs: Sequence[GenerationRequest]) -> list[GenerationResult]:
        futures = [asyncio.wrap_future(future) for future in queue.submit(jobs)]
        try:
            async with timeout(cfg.request_timeout):
                return await asyncio.gather(*futures)
        except asyncio.TimeoutError:
            reason = f"not answered within serve.request_timeout={cfg.request_timeout:g} s"
            raise ApiError(503, reason, soon=True) from None
        finally:
            for future in futures:
                future.cancel()

    @app.post("/v1/completions", dependencies=protected)
    async def completions(request: Request) -> Response:
        tokenizer, positions = queue.ready()
        body = parse(CompletionRequest, await read_body(request, cfg.max_body_mb, "serve.max_body_mb"))
        check_model(body.model)
        prompts = body.prompts
        if len(prompts) > cfg.max_prompts:
            raise ApiError(413, f"prompt: {len(prompts)} of them, serve.max_prompts={cfg.max_prompts}", "prompt")
        size = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        tokenized = [_tokenize(tokenizer, prompt) for prompt in prompts]
        seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed
        jobs = [
            GenerationRequest(
                tokens.ids,
                _check_length(tokens.ids, size, positions),
                body.sampling,
                (seed + i) % _SEEDS,
                body.logprobs,
            )
            for i, tokens in enumerate(tokenized)
        ]
        results = await while_connected(request, generate(jobs))
        choices = []
        for i, (tokens, job, result) in enumerate(zip(tokenized, jobs, results, strict=True)):
            text = tokenizer.response_text(result.response, job.sampling.end_strings)
            logprobs = None
            if body.logprobs is not None:
                logprobs = _logprobs(tokenizer, tokens, result, bool(body.echo))
            choices.append(
                {
                    "index": i,
                    "text": tokens.text + text if body.echo else text,
                    "logprobs": logprobs,
                    "finish_reason": "stop" if result.finished else "length",
                }
            )
        generated = sum(len(result.response) for result in results)
        return reply("text_completion", "cmpl", choices, sum(len(tokens.ids) for tokens in tokenized), generated)

    @app.post("/v1/chat/completions", dependencies=protected)
    async def chat_completions(request: Request) -> Response:
        tokenizer, positions = queue.ready()
        body = parse(ChatRequest, await read_body(request, cfg.max_body_mb, "serve.max_body_mb"))
        check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: asks for logprobs, which is not true", "top_logprobs")
        try:
            ids = tokenizer.chat.prompt_ids([Message(message.role, message.text) for message in body.messages])
        except Exception as error:  # a template refuses what it was not written for, in its own words
            raise ApiError(400, f"messages: the chat template refuses them: {error}", "messages") from error
        size = max(1, min(max_response, positions - len(ids))) if body.limit is None else body.limit
        seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed % _SEEDS
        top = (body.top_logprobs or 0) if body.logprobs else None
        job = GenerationRequest(ids, _check_length(ids, size, positions, "messages"), body.sampling, seed, top)
        [result] = await while_connected(request, generate([job]))
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": tokenizer.response_text(result.response, job.sampling.end_strings),
            },
            "logprobs": None if top is None else {"content": _content(tokenizer, result)},
            "finish_reason": "stop" if result.finished else "length",
        }
        return reply("chat.completion", "chatcmpl", [choice], len(ids), len(result.response))

    return app


def _tokenize(tokenizer: OffsetTokenizer, prompt: str | list[int]) -> Tokens:
    if isinstance(prompt, str):
        tokens = tokenizer.of_text(prompt)
    else:
        if wrong := [index for index in prompt if not 0 <= index < tokenizer.chat.size]:
            raise ApiError(400, f"prompt: {wrong[0]} is no token, the tokenizer has {tokenizer.chat.size}", "prompt")
        tokens = tokenizer.of_ids(prompt)
    if not tokens.ids:
        raise ApiError(400, "prompt: is empty", "prompt")
    return tokens


def _check_length(ids: Sequence[int], size: int, positions: int, field: str = "prompt") -> int:
    """``size``, if prompt and response fit the model. Raises ApiError (400) if they do not."""
    if len(ids) + size > positions:
        wrong = field if len(ids) >= positions else "max_tokens"
        reason = f"this model's maximum context length is {positions} tokens; {field}: {len(ids)}, max_tokens: {size}"
        raise ApiError(400, f"{wrong}: {reason}", wrong, "context_length_exceeded")
    return size


def _logprobs(tokenizer: OffsetTokenizer, prompt: Tokens, result: GenerationResult, echo: bool) -> dict[str, list[Any]]:
    """Tokens of prompt (where it is echoed) and response, their offsets in the choice's text, log-probabilities."""
    response = tokenizer.of_ids(result.response, len(prompt.text) if echo else 0)
    skip = 0 if echo else len(prompt.ids)
    pieces = (*prompt.pieces, *response.pieces) if echo else response.pieces
    offsets = (*prompt.offsets, *response.offsets) if echo else response.offsets
    likeliest: list[dict[str, float] | None] = []
    for own, logprob, top in zip(
        (*prompt.ids, *response.ids)[skip:], result.logprobs[skip:], result.top[skip:], strict=True
    ):
        # Two tokens may have the same text: the likelier one counts.
        by_text: dict[str, float] = {}
        for index, value in (*top, *([] if logprob is None else [(own, logprob)])):
            name = tokenizer.token_text(index)
            by_text[name] = max(value, by_text.get(name, value))
        likeliest.append(None if logprob is None else by_text)
    return {
        "tokens": list(pieces),
        "token_logprobs": list(result.logprobs[skip:]),
        "top_logprobs": likeliest,
        "text_offset": list(offsets),
    }


def _content(tokenizer: OffsetTokenizer, result: GenerationResult) -> list[dict[str, Any]]:
    """The log-probabilities of a chat's response."""
    size = len(result.response)

    def entry(index: int, logprob: float | None) -> dict[str, Any]:
        name = tokenizer.token_text(index)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    rows = zip(result.response, result.logprobs[-size:], result.top[-size:], strict=True)
    return [entry(index, own) | {"top_logprobs": [entry(*each) for each in top]} for index, own, top in rows]
