"""What a failed request says about its server, and whether to ask again."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError


class Unavailable(Exception):
    """The server did not answer and may do so later, after ``retry_after`` seconds if it named a time.

    ``limited``: it is in order, but was asked more often than it allows. ``words``: its own, which may repeat what it
    was asked. They are part of the error, which goes to who asked, and not of ``public``, which others may see too.
    """

    def __init__(self, text: str, retry_after: float = 0.0, limited: bool = False, words: str = "") -> None:
        super().__init__(f"{text} {one_line(words)}".rstrip())
        self.public = text
        self.retry_after = retry_after
        self.limited = limited


class BrokenReply(Exception):
    """The reply is no answer to what was asked."""


def unavailable_from(url: str, response: httpx.Response, reason: str | None = None) -> Unavailable:
    """The error for a reply that means: not now. ``reason``: the server's, by default the beginning of the body."""
    words = response.text if reason is None else reason
    limited = response.status_code == 429
    return Unavailable(f"{url}: {response.status_code}", retry_after(response), limited, words)


def one_line(words: str, most: int = 300) -> str:
    """Foreign words as one line of at most ``most`` printable characters."""
    printable = "".join(char if char.isprintable() else " " for char in words[: 4 * most])
    return " ".join(printable.split())[:most]


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
    """The first error in a line, without the input: texts of conversations belong in no log. A key that is unknown is
    input too."""
    first = error.errors(include_url=False, include_input=False)[0]
    unknown_key = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    where = ".".join(map(str, first["loc"][:-1] if unknown_key else first["loc"])) or "body"
    return f"{where}: {'a key is unknown' if unknown_key else first['msg']}"
