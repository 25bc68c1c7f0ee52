"""What a failed request says about its server, and whether to ask again."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError


class Unavailable(Exception):
    """The server did not answer and may do so later, after ``retry_after`` seconds if it named a time.

    ``limited``: it is in order, but was asked more often than it allows.
    """

    def __init__(self, text: str, retry_after: float = 0.0, limited: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.limited = limited


class BrokenReply(Exception):
    """The reply is no answer to what was asked."""


def unavailable_from(url: str, response: httpx.Response, reason: str | None = None) -> Unavailable:
    """The error for a reply that means: not now. ``reason``: the server's, by default the beginning of the body."""
    reason = response.text if reason is None else reason
    text = f"{url}: {response.status_code} {reason[:300]}"
    return Unavailable(text, retry_after(response), limited=response.status_code == 429)


def retry_after(response: httpx.Response) -> float:
    """Seconds of the reply's Retry-After header, which may be a date; 0 if it has none or it cannot be read."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds)


def first_fault(error: ValidationError) -> str:
    """The first error in a line, without the input: texts of conversations belong in no log."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
