"""The thread that listens while the others load a model and compute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_magic.config import ConfigError
from nemo_magic.config.serving import ServeConfig
from nemo_magic.net.hosts import http_url, listen
from nemo_magic.net.server import HttpServer
from nemo_magic.serving.app import create_app
from nemo_magic.serving.request_queue import RequestQueue


@contextmanager
def serve_http(options: ServeConfig, queue: RequestQueue, max_response: int) -> Iterator[str]:
    """The HTTP side in a thread, from now on until the end of the context; its address.

    Raises:
        ConfigError: no token although others can reach the host, or an address that cannot be bound.
    """
    try:
        app = create_app(options, queue, max_response)
        listener = listen(options.host, options.port)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"serve.host={options.host}, serve.port={options.port}: {error}") from error
    with listener:
        server = HttpServer(
            app,
            has_token=options.token_env is not None,
            max_connections=options.max_connections,
            key="serve.max_connections",
            grace=5,
            lifespan="off",
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
        thread.start()
        try:
            yield http_url(options.host, listener.getsockname()[1])
        finally:
            queue.abandon("the server ends")
            server.should_exit = True  # replies under way are still sent
            thread.join()
