"""Waiting for what other tasks, threads or processes do; what never comes fails the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Until ``condition`` holds, for other threads and processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Until ``condition`` holds, for other tasks of an event loop. Raises TimeoutError if it never does."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)
