"""An asker's settings, and a loop in which waiting takes no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


class Gone(Exception):
    """Patience is over."""


@dataclass
class Settings:
    urls: list[str] = field(default_factory=lambda: ["http://a"])
    max_concurrency: int = 8
    request_timeout: float = 5.0
    give_up_after: float = 300.0
    protocol_retries: int = 0
    backoff_initial: float = 0.5
    backoff_max: float = 4.0

    def token(self) -> str | None:
        return None


class MadeUpTime(asyncio.SelectorEventLoop):
    """A loop whose sleeps take no time: its clock jumps to whatever is due next."""

    def __init__(self) -> None:
        self.now = 1000.0
        loop = self

        class Jump(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[Any]:
                found = super().select(0)
                if not found and timeout:
                    loop.now += timeout
                return found

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


def run(work: Callable[[MadeUpTime], Awaitable[None]]) -> float:
    """Seconds of made-up time that ``work`` takes."""
    loop = MadeUpTime()
    began = loop.time()
    try:
        loop.run_until_complete(work(loop))
        return loop.time() - began
    finally:
        loop.close()
