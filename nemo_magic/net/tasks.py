"""Several coroutines for one purpose: nothing goes on once nobody needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def first_answer(tasks: Collection[asyncio.Task[T]]) -> T:
    """The first result; an error only once there is nothing better to wait for."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and task.exception() is None:
                return task.result()
        if not pending:
            return done.pop().result()


async def gather(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of ``works``, in order; the first error cancels what is left."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
