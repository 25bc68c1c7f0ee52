"""What a reply may be like and is still read, or is not."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import httpx
import pytest

from nemo_magic.net import http
from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.faults import BrokenReply
from nemo_magic.net.http import Http
from nemo_magic.net.retrying_client import RetryingClient
from tests.net.made_up_time import Gone

LIMIT = 50_000
Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def with_length(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)


async def until_the_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 100_000)


async def for_ever(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def packed(writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b"x" * 100_000)
    assert len(body) < LIMIT / 100
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def error_for_ever(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def short(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LIMIT + b"x" * LIMIT)


async def serving(write: Write, use: Callable[[str], Awaitable[None]]) -> None:
    """Call ``use`` with the address of a server that answers every request with what ``write`` writes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await write(writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REPLY", LIMIT)


@pytest.mark.parametrize("write", [with_length, until_the_end, for_ever, packed, error_for_ever])
@pytest.mark.parametrize("method", ["get", "post"])
def test_no_reply_is_read_beyond_the_limit_however_it_is_sent(write: Write, method: str) -> None:
    async def use(url: str) -> None:
        client = Http({}, 2, 5.0)
        asked = client.get(url, 30.0) if method == "get" else client.post(url, b"{}")
        with pytest.raises(BrokenReply, match=rf"^{url}: the reply is longer than 0\.05 MB$"):
            await asked
        await client.aclose()

    asyncio.run(serving(write, use))


def test_a_reply_of_the_limit_is_read_whole() -> None:
    async def use(url: str) -> None:
        client = Http({}, 2, 5.0)
        assert (await client.get(url, 30.0)).content == b"x" * LIMIT
        await client.aclose()

    asyncio.run(serving(short, use))


def test_a_server_whose_list_of_models_never_ends_is_not_ready() -> None:
    async def use(url: str) -> None:
        client = RetryingClient(EndpointConfig(urls=[url]), "server", "remote", Gone)

        def read(url: str, response: httpx.Response) -> None:
            raise AssertionError("never read")

        with pytest.raises(Gone, match=r"no server is ready.*the reply is longer than"):
            await client.until_ready("/models", read, 0.5)
        await client.aclose()

    asyncio.run(serving(for_ever, use))
