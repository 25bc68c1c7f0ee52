"""A role that a server plays, where servers are gone, busy, resting, or want a token."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpx
import pytest

from nemo_magic.actors.errors import RemoteRefused, RemoteUnavailable
from nemo_magic.net.faults import retry_after
from nemo_magic.net.limits import RateLimit
from nemo_magic.net.replicas import Replicas
from tests.actors.chat_endpoint import Answer, Body, chat, echo, free_url, says, text_of
from tests.waiting import wait_for


def test_replicas_share_the_rows_and_a_second_takes_over_from_one_that_is_gone(endpoint, policy):
    one, two = endpoint(echo), endpoint(echo)
    policy(one.url, two.url).generate([chat(str(n)) for n in range(6)], range(6))
    assert (len(one.bodies), len(two.bodies)) == (3, 3)
    said = policy(free_url(), one.url).generate([chat(str(n)) for n in range(4)], range(4))
    assert [text_of(completion) for completion in said] == [f"re: {n}" for n in range(4)]


def test_a_server_that_is_down_is_waited_for(endpoint, policy):
    url = free_url()
    client = policy(url)
    pending = client.submit([chat("lo"), chat("mi")], [1, 2])
    wait_for(lambda: client.stats()["outage_s"] > 0)
    assert not pending.done()
    endpoint(echo, port=int(url.rsplit(":", 1)[1].removesuffix("/v1")))
    assert [text_of(completion) for completion in pending.result(30)] == ["re: lo", "re: mi"]
    assert client.stats()["retries"] > 0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_server_that_cannot_answer_now_is_asked_again(endpoint, policy, status):
    server = endpoint(lambda _: (status, {"error": {"message": "busy"}}), echo)
    client = policy(server.url)
    assert text_of(client.generate([chat("lo")], [1])[0]) == "re: lo"
    assert client.stats()["retries"] == 1


def test_a_server_that_never_answers_ends_the_wait_with_a_clear_error(policy):
    client = policy(free_url(), give_up_after=0.2)
    with pytest.raises(RemoteUnavailable, match=r"actors\.attacker\.remote\.give_up_after=0\.2.*ConnectError"):
        client.generate([chat("lo")], [1])
    with pytest.raises(RemoteUnavailable, match="no remote model is ready"):
        client.wait_ready(0.1)


def test_a_server_that_hangs_is_an_outage(policy):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        client = policy(url, request_timeout=0.05, give_up_after=0.2)
        with pytest.raises(RemoteUnavailable, match=r"actors\.attacker\.remote\.request_timeout=0\.05"):
            client.generate([chat("lo")], [1])


def test_a_server_that_asks_for_a_rest_gets_it_up_to_the_longest_backoff(endpoint, policy, monkeypatch):
    cooldowns: list[float] = []
    cooldown = Replicas.cooldown

    def recording(replicas: Replicas, i: int, until: float) -> None:
        cooldowns.append(until - asyncio.get_running_loop().time())
        cooldown(replicas, i, until)

    monkeypatch.setattr(Replicas, "cooldown", recording)
    server = endpoint(lambda _: (503, {}, {"Retry-After": "3600"}), echo)
    client = policy(server.url, backoff_initial=0.001, backoff_max=0.5)
    assert text_of(client.generate([chat("lo")], [1])[0]) == "re: lo"
    assert cooldowns == [pytest.approx(0.5, abs=0.01)]


@pytest.mark.slow
def test_a_server_that_counts_requests_is_not_asked_before_its_time(endpoint, policy):
    """It takes three, then none for 0.3 s: what comes earlier all the same is a violation."""
    taken, closed_until, violations = [], [0.0], []

    def counting(body: Body) -> Answer:
        now = time.monotonic()
        if now < closed_until[0]:
            violations.append(body)
        elif len(taken) % 4 == 3:
            taken.append(None)
            closed_until[0] = now + 0.3
            return 429, {"error": {"message": "rate limit"}}, {"Retry-After": "0.3"}
        taken.append(body)
        return echo(body)

    server = endpoint(counting)
    # Its own patience between attempts would be much shorter.
    client = policy(server.url, backoff_initial=0.001, backoff_max=0.01, max_concurrency=1)
    said = client.generate([chat(f"lo {i}") for i in range(10)], list(range(10)))
    assert [text_of(one) for one in said] == [f"re: lo {i}" for i in range(10)]
    assert violations == []
    assert client.stats()["limited"] == 3


def test_what_the_server_says_was_taken_frees_what_was_reserved(endpoint, policy):
    """Reserved are 256 tokens and some a request, taken are 10: at 1,000 a minute all ten are asked without a pause."""
    server = endpoint(lambda body: (200, says("yes") | {"usage": {"total_tokens": 10}}))
    client = policy(server.url, rate_limit=RateLimit(tokens_per_minute=1000), max_concurrency=2)
    assert len(client.generate([chat("lo")] * 10, list(range(10)))) == 10
    assert client.stats()["paced_s"] < 5


def test_a_rest_may_be_given_in_seconds_or_as_a_date():
    def asked(value: str) -> float:
        return retry_after(httpx.Response(429, headers={"Retry-After": value}))

    assert asked("7") == 7
    assert 3000 < asked(format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)) <= 3600
    assert [asked(value) for value in ("Wed, 21 Oct 2015 07:28:00 GMT", "-3", "nan", "soon", "")] == [0.0] * 5


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_not_accepted_stops_at_once(endpoint, policy, monkeypatch, status):
    monkeypatch.setenv("REMOTE_TEST_TOKEN", "wrong")
    refusal = (status, {"error": {"message": "bad key"}})
    server = endpoint(lambda _: refusal, models=refusal)
    client = policy(server.url, token_env="REMOTE_TEST_TOKEN")
    for use in (lambda: client.generate([chat("lo")], [1]), lambda: client.wait_ready(20)):
        with pytest.raises(RemoteRefused, match=rf"{status} bad key.*remote\.token_env=REMOTE_TEST_TOKEN"):
            use()
    assert len(server.bodies) == 1


def test_the_token_is_sent_and_has_to_be_there(endpoint, policy, monkeypatch):
    monkeypatch.setenv("REMOTE_TEST_TOKEN", "right")
    server = endpoint(echo)
    policy(server.url, token_env="REMOTE_TEST_TOKEN").generate([chat("lo")], [1])
    assert server.headers[0]["authorization"] == "Bearer right"
    monkeypatch.setenv("REMOTE_TEST_TOKEN", "")
    with pytest.raises(ValueError, match="remote.token_env=REMOTE_TEST_TOKEN"):
        policy(server.url, token_env="REMOTE_TEST_TOKEN")
