"""An Asker on a thread of its own: training goes on while it asks, and waits for a future."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from nemo_magic.net.retrying_client import RetryingClient, RetrySettings, Taken

T = TypeVar("T")


class BackgroundClient:
    """Asks the replicas at ``cfg.urls``; the arguments are Asker's. Raises what ``cfg.token`` raises."""

    def __init__(
        self,
        cfg: RetrySettings,
        noun: str,
        key: str,
        unavailable: type[Exception],
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self._noun = noun
        self._asker = RetryingClient(cfg, noun, key, unavailable, clock, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{noun} client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on the client's thread. Raises RuntimeError once the client is closed."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError(f"the {self._noun} client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stats(self) -> dict[str, float]:
        """Totals since the client began: counts of requests, latencies of answers, seconds of outage."""
        return self._asker.stats()

    def close(self) -> None:
        """Cancel what is pending and end the thread. Futures still pending are cancelled."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def ask(self, once: Callable[[str], Awaitable[T]], tokens: int = 0, taken: Taken[T] | None = None) -> T:
        """Asker.ask; for work that was submitted."""
        return await self._asker.ask(once, tokens, taken)

    async def post(self, url: str, body: bytes) -> httpx.Response:
        """Asker.post."""
        return await self._asker.post(url, body)

    async def until_ready(self, path: str, read: Callable[[str, httpx.Response], T], timeout_s: float) -> T:
        """Asker.until_ready."""
        return await self._asker.until_ready(path, read, timeout_s)

    async def _shutdown(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._asker.aclose()
