"""An HTTP client that is cheap enough for many requests at once.

It has aiohttp's connections behind httpx's responses: httpx's own pool looks at every connection for every request,
which takes several milliseconds of CPU each with 64 requests at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import httpx

from nemo_magic.net.faults import BrokenReply

MAX_REPLY = 64_000_000
"""Bytes of a reply that are read."""

_DECODED = ("content-encoding", "transfer-encoding")


class Http:
    """GET and POST on the running loop; at most ``max_connections``, each opened within ``connect_timeout`` seconds.

    Both raise httpx.TransportError for whatever keeps a reply from being read to its end, BrokenReply for one of more
    than ``MAX_REPLY`` bytes, RuntimeError once closed.
    """

    def __init__(self, headers: Mapping[str, str], max_connections: int, connect_timeout: float) -> None:
        self._headers = dict(headers)
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, timeout: float | None) -> httpx.Response:
        """The reply, whatever its status, if it is there within ``timeout`` seconds."""
        return await self._ask("GET", url, **({} if timeout is None else {"timeout": aiohttp.ClientTimeout(timeout)}))

    async def post(self, url: str, body: bytes) -> httpx.Response:
        """Post JSON; the reply, whatever its status."""
        return await self._ask("POST", url, data=body, headers={"Content-Type": "application/json"})

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            async with self._open().request(method, url, allow_redirects=False, **options) as reply:
                content = bytearray()
                async for chunk in reply.content.iter_any():
                    content += chunk
                    if len(content) > MAX_REPLY:
                        raise BrokenReply(f"{url}: the reply is longer than {MAX_REPLY / 1e6:g} MB")
                # It is decoded already.
                headers = [(name, value) for name, value in reply.headers.items() if name.lower() not in _DECODED]
                return httpx.Response(reply.status, headers=headers, content=bytes(content))
        except aiohttp.ClientConnectorError as error:
            raise httpx.ConnectError(str(error.os_error)) from error
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise httpx.ReadError(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def _open(self) -> aiohttp.ClientSession:
        """The session, which belongs to the loop that first asks."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # What is packed may be a thousand times as long as it arrives.
                headers={"Accept-Encoding": "identity"} | self._headers,
                connector=aiohttp.TCPConnector(limit=self._max_connections),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
                # A proxy or .netrc from the environment must see neither the conversations nor the token.
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session
