"""The HTTP side: what OpenAI's clients ask, as jobs, and answers as they expect them.

    GET  /v1/models, /v1/models/{id}
    POST /v1/completions        texts or ids; ``echo`` with ``logprobs`` scores a prompt
    POST /v1/chat/completions   by the tokenizer's own chat template
    GET  /healthz               200 while the process lives
    GET  /readyz                200 while requests are taken, 503 while the model loads or the server ends

All but the last two are behind the token, where there is one. What is refused is told with the name of its field.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from nemo_magic.backports import timeout
from nemo_magic.config.serving import ServeConfig
from nemo_magic.game.episode import Message
from nemo_magic.net.body import read_body
from nemo_magic.serving.engine import GenerationRequest, GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer, Tokens
from nemo_magic.serving.protocol import ApiError, ChatRequest, CompletionRequest, parse
from nemo_magic.serving.request_queue import RequestQueue

DEFAULT_TOKENS = 16
"""What a text is continued by where its request does not say; OpenAI's number."""

_BEARER = HTTPBearer(auto_error=False)
_SEEDS = 2**64


def create_app(cfg: ServeConfig, desk: RequestQueue, longest: int) -> FastAPI:
    """The application. ``longest``: tokens of a reply in a chat whose request does not say.

    Raises ValueError where ``cfg.token`` does.
    """
    token = cfg.token()
    app = FastAPI(title="nemo-magic serve")
    born = int(time.time())

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        said = given.credentials if given is not None else ""
        if token is not None and not secrets.compare_digest(said.encode(), token.encode()):
            raise ApiError(401, "wrong or missing bearer token", code="invalid_api_key")

    guarded = [Depends(authorised)]

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def lost(_: Request, error: HTTPException) -> Response:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body(), error.status_code)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        desk.ready()
        return {"status": "ready", "model": cfg.name}

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card()]}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        known(name)
        return model_card()

    def model_card() -> dict[str, Any]:
        _, positions = desk.ready()
        return {
            "id": cfg.name,
            "object": "model",
            "created": born,
            "owned_by": "nemo-magic",
            "max_model_len": positions,
        }

    def known(name: str) -> None:
        if name != cfg.name:
            raise ApiError(404, f"model: there is no {name!r} here, only {cfg.name!r}", "model", "model_not_found")

    def answered(kind: str, prefix: str, choices: list[dict[str, Any]], read: int, said: int) -> Response:
        usage = {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
        name = f"{prefix}-{secrets.token_hex(12)}"
        body = {"id": name, "object": kind, "created": int(time.time()), "model": cfg.name, "choices": choices}
        return JSONResponse(body | {"usage": usage})

    async def asked(jobs: Sequence[GenerationRequest]) -> list[GenerationResult]:
        promises = [asyncio.wrap_future(promise) for promise in desk.submit(jobs)]
        try:
            async with timeout(cfg.request_timeout):
                return await asyncio.gather(*promises)
        except asyncio.TimeoutError:
            why = f"not answered within serve.request_timeout={cfg.request_timeout:g} s"
            raise ApiError(503, why, soon=True) from None
        finally:
            for promise in promises:
                promise.cancel()

    @app.post("/v1/completions", dependencies=guarded)
    async def completions(request: Request) -> Response:
        words, positions = desk.ready()
        asks = parse(CompletionRequest, await read_body(request, cfg.max_body_mb, "serve.max_body_mb"))
        known(asks.model)
        prompts = asks.prompts
        if len(prompts) > cfg.max_prompts:
            raise ApiError(413, f"prompt: {len(prompts)} of them, serve.max_prompts={cfg.max_prompts}", "prompt")
        size = DEFAULT_TOKENS if asks.max_tokens is None else asks.max_tokens
        read = [_read_prompt(words, prompt) for prompt in prompts]
        seed = secrets.randbelow(_SEEDS) if asks.seed is None else asks.seed
        jobs = [
            GenerationRequest(
                tokens.ids, _room(tokens.ids, size, positions), asks.sampling, (seed + i) % _SEEDS, asks.logprobs
            )
            for i, tokens in enumerate(read)
        ]
        answers = await asked(jobs)
        choices = []
        for i, (tokens, job, answer) in enumerate(zip(read, jobs, answers, strict=True)):
            text = words.said(answer.response, job.sampling.end_strings)
            told = None
            if asks.logprobs is not None:
                told = _logprobs(words, tokens, answer, bool(asks.echo))
            choices.append(
                {
                    "index": i,
                    "text": tokens.text + text if asks.echo else text,
                    "logprobs": told,
                    "finish_reason": "stop" if answer.finished else "length",
                }
            )
        said = sum(len(answer.response) for answer in answers)
        return answered("text_completion", "cmpl", choices, sum(len(tokens.ids) for tokens in read), said)

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat_completions(request: Request) -> Response:
        words, positions = desk.ready()
        asks = parse(ChatRequest, await read_body(request, cfg.max_body_mb, "serve.max_body_mb"))
        known(asks.model)
        if asks.top_logprobs is not None and not asks.logprobs:
            raise ApiError(400, "top_logprobs: asks for logprobs, which is not true", "top_logprobs")
        try:
            ids = words.chat.prompt_ids([Message(message.role, message.text) for message in asks.messages])
        except Exception as error:  # a template refuses what it was not written for, in its own words
            raise ApiError(400, f"messages: the chat template refuses them: {error}", "messages") from error
        size = max(1, min(longest, positions - len(ids))) if asks.limit is None else asks.limit
        seed = secrets.randbelow(_SEEDS) if asks.seed is None else asks.seed % _SEEDS
        top = (asks.top_logprobs or 0) if asks.logprobs else None
        job = GenerationRequest(ids, _room(ids, size, positions, "messages"), asks.sampling, seed, top)
        [answer] = await asked([job])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": words.said(answer.response, job.sampling.end_strings)},
            "logprobs": None if top is None else {"content": _content(words, answer)},
            "finish_reason": "stop" if answer.finished else "length",
        }
        return answered("chat.completion", "chatcmpl", [choice], len(ids), len(answer.response))

    return app


def _read_prompt(words: OffsetTokenizer, prompt: str | list[int]) -> Tokens:
    if isinstance(prompt, str):
        tokens = words.of_text(prompt)
    else:
        if wrong := [index for index in prompt if not 0 <= index < words.chat.size]:
            raise ApiError(400, f"prompt: {wrong[0]} is no token, the tokenizer has {words.chat.size}", "prompt")
        tokens = words.of_ids(prompt)
    if not tokens.ids:
        raise ApiError(400, "prompt: is empty", "prompt")
    return tokens


def _room(ids: Sequence[int], size: int, positions: int, field: str = "prompt") -> int:
    """``size``, if the model has room for it. Raises ApiError."""
    if len(ids) + size > positions:
        wrong = field if len(ids) >= positions else "max_tokens"
        why = f"this model's maximum context length is {positions} tokens; {field}: {len(ids)}, max_tokens: {size}"
        raise ApiError(400, f"{wrong}: {why}", wrong, "context_length_exceeded")
    return size


def _logprobs(words: OffsetTokenizer, prompt: Tokens, answer: GenerationResult, echo: bool) -> dict[str, list[Any]]:
    """Of prompt (where it is echoed) and response: tokens, where in the choice's text they begin, and what they had."""
    said = words.of_ids(answer.response, len(prompt.text) if echo else 0)
    skip = 0 if echo else len(prompt.ids)
    pieces = (*prompt.pieces, *said.pieces) if echo else said.pieces
    offsets = (*prompt.offsets, *said.offsets) if echo else said.offsets
    likeliest: list[dict[str, float] | None] = []
    for own, logprob, top in zip(
        (*prompt.ids, *said.ids)[skip:], answer.logprobs[skip:], answer.top[skip:], strict=True
    ):
        # Two tokens may read alike: the likelier keeps the name.
        told: dict[str, float] = {}
        for index, value in (*top, *([] if logprob is None else [(own, logprob)])):
            name = words.one(index)
            told[name] = max(value, told.get(name, value))
        likeliest.append(None if logprob is None else told)
    return {
        "tokens": list(pieces),
        "token_logprobs": list(answer.logprobs[skip:]),
        "top_logprobs": likeliest,
        "text_offset": list(offsets),
    }


def _content(words: OffsetTokenizer, answer: GenerationResult) -> list[dict[str, Any]]:
    """A chat's logprobs: of the response alone."""
    size = len(answer.response)

    def told(index: int, logprob: float | None) -> dict[str, Any]:
        name = words.one(index)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    rows = zip(answer.response, answer.logprobs[-size:], answer.top[-size:], strict=True)
    return [told(index, own) | {"top_logprobs": [told(*each) for each in top]} for index, own, top in rows]
