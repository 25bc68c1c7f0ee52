"""A RetryingClient on a thread of its own: training goes on while it asks, and waits for a future."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.retrying_client import RetryingClient

T = TypeVar("T")


class BackgroundClient(RetryingClient):
    """Asks on its own thread; the arguments are RetryingClient's, whose coroutines have to be submitted here.

    Raises what ``cfg.token`` raises.
    """

    def __init__(
        self,
        cfg: EndpointConfig,
        noun: str,
        key: str,
        unavailable: type[Exception],
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(cfg, noun, key, unavailable, clock, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{noun} client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` on the client's thread. Raises RuntimeError once the client is closed."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError(f"the {self._noun} client is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what is pending and end the thread. Futures still pending are cancelled."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shutdown(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.aclose()
