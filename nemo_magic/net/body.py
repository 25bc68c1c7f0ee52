"""Reading a request's body, and working only for who is still there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from nemo_magic.backports import timeout

T = TypeVar("T")

BODY_TIMEOUT = 30.0
"""Seconds for a request's body to arrive."""
CLIENT_GONE = 499
"""The status, after nginx, of a request whose client did not wait for the answer; nobody reads it but metrics."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


async def read_body(request: Request, megabytes: float, key: str) -> bytes:
    """The body, at most ``megabytes`` (10⁶ bytes) of it; ``key`` is the configuration key of that limit.

    Raises:
        HTTPException: 413 for a longer body, which is read to its end all the same: else the client would not see the
            answer; 408 where it does not arrive within ``BODY_TIMEOUT``; 499 where the client leaves before its end.
    """
    limit = int(megabytes * 1e6)
    body, size = bytearray(), 0
    try:
        async with timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    body += chunk
                else:
                    body.clear()
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_TIMEOUT:g} s") from None
    except ClientDisconnect:
        raise HTTPException(CLIENT_GONE, "the client left before the end of its body") from None
    if size > limit:
        raise HTTPException(413, f"the body is longer than {key}={megabytes:g}")
    return bytes(body)


def refuse_crowded(body: bytes, most: int) -> None:
    """Refuse JSON of more than ``most`` values, before any of them is made: each costs far more than its two bytes.

    Raises:
        HTTPException: 413, naming both numbers.
    """
    if len(body) <= most:
        return
    structure = _STRING.sub(b"", body)
    values = sum(map(structure.count, (b",", b"{", b"[")))
    if values > most:
        raise HTTPException(413, f"the body has {values} values, at most {most} are taken")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up. Call it after ``read_body``.

    Raises:
        HTTPException: 499 where the client left; and what ``work`` raises.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(CLIENT_GONE, "the client left before the answer")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
