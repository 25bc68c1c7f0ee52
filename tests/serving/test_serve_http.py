"""The HTTP side of `nemo-magic serve` as it runs: who may ask it, and what becomes of those who leave."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.config.serving import ServeConfig
from nemo_magic.serving.http_thread import serve_http
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer
from nemo_magic.serving.request_queue import RequestQueue
from tests.waiting import wait_for


@pytest.fixture
def queue() -> RequestQueue:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = "{{ messages[0]['content'] }}"
    queue = RequestQueue(4)
    queue.open(OffsetTokenizer(wrapped, ChatTokenizer(SimpleNamespace(tokenizer=wrapped))), 8)
    return queue


@pytest.fixture
def url(queue: RequestQueue) -> Iterator[str]:
    with serve_http(ServeConfig(model="m", port=0), queue, 8) as url:
        yield url


BODIES = {
    "/v1/completions": {"model": "m", "prompt": "so", "max_tokens": 1},
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "so"}], "max_tokens": 1},
}


def test_health_can_be_asked_for_without_a_body_and_no_page_loads_anything(url: str) -> None:
    for path in ("/healthz", "/readyz"):
        assert httpx.head(f"{url}{path}", trust_env=False).status_code == 200
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert httpx.get(f"{url}{path}", trust_env=False).status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "site.example"}, 421), ({"Content-Type": "text/plain"}, 415), ({"Origin": "http://site.example"}, 415)],
)
def test_a_web_page_cannot_ask(url: str, path: str, headers: dict[str, str], status: int) -> None:
    refused = httpx.post(f"{url}{path}", content=json.dumps(BODIES[path]), headers=headers, trust_env=False)
    assert refused.status_code == status
    assert refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_who_leaves_costs_neither_a_traceback_nor_the_work(
    url: str, queue: RequestQueue, path: str, part: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "uvicorn.error")
    address = urlsplit(url)
    body = json.dumps(BODIES[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + body[: int(part * len(body))])
        if part == 1.0:
            wait_for(lambda: queue._waiting)
    if part == 1.0:
        wait_for(lambda: queue._waiting[0][1].cancelled())
    assert queue.take(4, 0.0) == []
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
