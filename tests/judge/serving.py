"""An application behind a real socket, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from nemo_magic.judge.protocol import JudgeBatch, JudgeItem
from nemo_magic.net.hosts import listen


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of ``app``, which is served from a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
                yield http
        finally:
            server.should_exit = True
            thread.join()


def body(*items: JudgeItem) -> str:
    return JudgeBatch(items=items).to_json()
