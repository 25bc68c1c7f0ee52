"""What OpenAI-compatible servers say when they do not do what was asked."""

from __future__ import annotations

import re
from typing import Any

import httpx

NOT_NOW = (408, 409, 429)
"""Statuses that mean: later, perhaps; so does every one from 500."""
_MAY_BE_TOO_LONG = (400, 404, 413, 422)
# As OpenAI, vLLM, SGLang, llama.cpp, TGI and Anthropic's compatible endpoint put it.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|(prompt|inputs?|messages?) (is|are) too long|too many (input |prompt )?tokens"
    r"|reduce the length|maximum (prompt|input|sequence) length|inputs?`? tokens \+ `?max_new_tokens",
    re.IGNORECASE,
)


def is_too_long(response: httpx.Response) -> bool:
    """Whether the server says that the text does not fit its model."""
    return response.status_code in _MAY_BE_TOO_LONG and _TOO_LONG.search(words(response)) is not None


def words(response: httpx.Response) -> str:
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


def total_tokens(usage: Any) -> int | None:
    """Tokens of prompt and response as a reply's ``usage`` tells them; None where it does not."""
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total > 0 else None
