"""Replies that are too long, and words of a server that belong to one who asked and to nobody else."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest

from nemo_magic.net import http as net_http
from nemo_magic.net.endpoint import EndpointConfig
from nemo_magic.net.faults import BrokenReply, Unavailable, one_line, unavailable_from
from nemo_magic.net.retrying_client import RetryingClient
from nemo_magic.net.tasks import gather

LONG = b"x" * 100_000


class GaveUp(Exception):
    pass


async def replying(reply: bytes, work: Callable[[RetryingClient, str], Awaitable[None]]) -> None:
    """``work`` with a client of a server that always sends ``reply``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = RetryingClient(
        EndpointConfig(urls=[url], protocol_retries=1, backoff_initial=0.01, give_up_after=5.0), "server", "x", GaveUp
    )
    try:
        await work(client, url)
    finally:
        await client.aclose()
        server.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + LONG,
        b"HTTP/1.1 500 Oh\r\nContent-Length: 100000\r\n\r\n" + LONG,
        b"HTTP/1.1 200 OK\r\n\r\n" + LONG,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n" + LONG + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(LONG))
        + gzip.compress(LONG),
    ],
    ids=["whole", "error", "unending", "chunked", "packed"],
)
def test_a_reply_that_is_too_long_is_read_no_further_and_no_answer(
    reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_http, "MAX_REPLY", 1000)

    async def work(client: RetryingClient, url: str) -> None:
        with pytest.raises(BrokenReply, match="the reply is longer than"):
            await client.ask(lambda url: client.post(url, b"{}"))
        assert client.stats()["protocol_errors"] == 2
        with pytest.raises(GaveUp, match="the reply is longer than"):
            await client.until_ready("/models", lambda url, reply: reply, 0.1)

    asyncio.run(replying(reply, work))


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + LONG[:1000]])
def test_a_reply_as_long_as_allowed_is_read(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_http, "MAX_REPLY", 1000)

    async def work(client: RetryingClient, url: str) -> None:
        answer = await client.ask(lambda url: client.post(url, b"{}"))
        assert answer.content == LONG[:1000]

    asyncio.run(replying(reply, work))


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_a_server_says_is_told_to_who_asked_and_neither_to_others_nor_to_the_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The server repeats what it was asked, over several lines."""
    caplog.set_level(logging.DEBUG)

    async def run() -> list[object]:
        cfg = EndpointConfig(
            urls=["http://x"], max_concurrency=8, give_up_after=0.2, backoff_initial=0.01, backoff_max=0.02
        )
        client = RetryingClient(cfg, "server", "x", GaveUp)

        async def one(name: str) -> object:
            async def request(url: str) -> None:
                await asyncio.sleep(0.001)
                raise unavailable_from(url, httpx.Response(status, text=f"cannot answer\n{name}\u2028now"))

            try:
                return await client.ask(request)
            except GaveUp as error:
                return error

        try:
            return await gather(one(f"secret-{n}") for n in range(32))
        finally:
            await client.aclose()

    errors = asyncio.run(run())
    for number, error in enumerate(errors):
        text = str(error)
        assert isinstance(error, GaveUp)
        assert text.count("secret-") == text.count(f"secret-{number}"), text
        assert len(text.splitlines()) == 1
        assert f"http://x: {status}" in text
    assert any("secret-" in str(error) for error in errors)  # of those that came to be asked
    assert "waiting for the server" in caplog.text
    assert "secret-" not in caplog.text


@pytest.mark.parametrize("words", ["a\nb", "a\r\n\tb", "a\x00\x1bb", "a\u2028b", "  a   b  "])
def test_foreign_words_are_one_printable_line(words: str) -> None:
    assert one_line(words) == "a b"
    assert one_line("ab" * 1_000_000, 5) == "ababa"
    assert str(Unavailable("x: 500", words=words)) == "x: 500 a b"
    assert Unavailable("x: 500", words=words).public == "x: 500"
