"""What a server's silence or reply says about it, and whether to ask again."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError


class Unavailable(Exception):
    """The server did not answer now and may later, not before ``retry_after`` seconds if it said so; ``limited``: it
    could, but was asked more than it lets itself be."""

    def __init__(self, text: str, retry_after: float = 0.0, limited: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.limited = limited


class BrokenReply(Exception):
    """The server answered something that is no answer to what was asked."""


def outage(url: str, response: httpx.Response, words: str | None = None) -> Unavailable:
    """A reply that says: not now. ``words`` of the server, by default the beginning of the body."""
    said = response.text if words is None else words
    text = f"{url}: {response.status_code} {said[:300]}"
    return Unavailable(text, retry_after(response), limited=response.status_code == 429)


def retry_after(response: httpx.Response) -> float:
    """Seconds of the reply's Retry-After header, which may also be a date; 0 if it has none that can be read."""
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
    """In a line, and without the input: texts of conversations belong in no log."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
