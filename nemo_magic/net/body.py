"""Reading a request's body."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException, Request

from nemo_magic.backports import timeout

BODY_TIMEOUT = 30.0
"""Seconds for a request's body to arrive."""


async def read_body(request: Request, megabytes: float, key: str) -> bytes:
    """The body, at most ``megabytes`` (10⁶ bytes) of it; ``key`` is the configuration key of that limit.

    Raises:
        HTTPException: 413 for a longer body, which is read to its end all the same: else the client would not see the
            answer; 408 where it does not arrive within ``BODY_TIMEOUT``.
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
    if size > limit:
        raise HTTPException(413, f"the body is longer than {key}={megabytes:g}")
    return bytes(body)
