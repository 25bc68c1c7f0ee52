"""The replies of OpenAI-compatible servers: answers as pydantic models, and errors by what they mean.

A reply has to have what its readers need and may have more. What a client sends is its own business.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from nemo_magic.net.faults import BrokenReply, first_fault, one_line, unavailable_from

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
One = Annotated[list[T], Field(min_length=1, max_length=1)]
"""The choices of a request that asked for one."""

_NOT_NOW = (408, 409, 429)
"""Statuses that mean: later, perhaps; so does every one from 500."""
_MAY_BE_TOO_LONG = (400, 404, 413, 422)
# As OpenAI, vLLM, SGLang, llama.cpp, TGI and Anthropic's compatible endpoint put it.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|(prompt|inputs?|messages?) (is|are) too long|too many (input |prompt )?tokens"
    r"|reduce the length|maximum (prompt|input|sequence) length|inputs?`? tokens \+ `?max_new_tokens",
    re.IGNORECASE,
)


class ChatReply(BaseModel):
    """The message of a chat choice; ``content`` is null where a content filter took it."""

    content: str | None


class ChatChoice(BaseModel):
    """One answer to a chat. ``finish_reason`` is ``length`` where the limit of tokens cut it."""

    message: ChatReply
    finish_reason: str


class ChatCompletion(BaseModel):
    """The reply of ``/chat/completions`` to a request for one choice. Not every server says which model answered."""

    model: str | None = None
    choices: One[ChatChoice]
    usage: Any = None


class TextChoice(BaseModel):
    """One continuation of a raw prompt."""

    text: str


class Completion(BaseModel):
    """The reply of ``/completions`` to a request for one choice."""

    model: str
    choices: One[TextChoice]
    usage: Any = None


class ModelCard(BaseModel):
    """A model that a server has."""

    id: str


class ModelList(BaseModel):
    """The reply of ``/models``."""

    data: list[ModelCard]


class Embedding(BaseModel):
    """The vector of the text at ``index`` of the request; numbers that are not finite are refused."""

    index: int
    embedding: Annotated[list[FiniteFloat], Field(min_length=1)]


class Embeddings(BaseModel):
    """The reply of ``/embeddings``."""

    model: str
    data: list[Embedding]


def read_reply(kind: type[R], url: str, response: httpx.Response) -> R:
    """The body of a successful reply as ``kind``. Raises BrokenReply if it is not one."""
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise BrokenReply(f"{url}: {first_fault(error)}") from error


def raise_if_unavailable(url: str, response: httpx.Response) -> None:
    """Raise Unavailable, with the server's own words, for a status that means: not now."""
    if response.status_code in _NOT_NOW or response.status_code >= 500:
        raise unavailable_from(url, response, error_text(response))


def is_too_long(response: httpx.Response) -> bool:
    """Whether the server says that the text does not fit its model."""
    return response.status_code in _MAY_BE_TOO_LONG and _TOO_LONG.search(error_text(response)) is not None


def error_text(response: httpx.Response) -> str:
    """What the server says is wrong.

    Only its own words where the body has a known form: some echo the request, and what a chat says is no diagnosis.
    """
    try:
        body = response.json()
    except ValueError:
        return response.text
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    if isinstance(error, list):
        return "; ".join(str(entry.get("msg", "")) if isinstance(entry, dict) else str(entry) for entry in error)
    if isinstance(error, dict):
        return " ".join(str(error[name]) for name in ("code", "message") if error.get(name) is not None)
    return str(error)


def wrong_model(url: str, model: str, key: str, configured: str | None, reply_model: str | None) -> str | None:
    """What is wrong with a reply that names ``model``, and what would make it right; None if it is the configured one.

    ``key``: where the server is configured; ``reply_model``: what replies have instead of the name ``configured``.
    """
    if model == (reply_model or configured):
        return None
    expected = f"{key}.reply_model={reply_model!r}" if reply_model else f"{key}.model={configured!r}"
    name = one_line(model)
    hint = f"if that is what this server calls it in its replies, set {key}.reply_model={name!r}"
    return f"{url} answered with the model {name!r}; {expected}; {hint}"


def total_tokens(usage: Any) -> int | None:
    """Tokens of prompt and response as a reply's ``usage`` tells them; None where it does not."""
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total > 0 else None
