"""The fault table of docs/judge.md, over real sockets: no reward without a verdict, no sample lost or twice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from nemo_magic.game.episode import Answer, Label, Safety, Seed, Verdict
from nemo_magic.game.rewards import RewardConfig, attacker_reward, defender_reward
from nemo_magic.judge.client import JudgeClient, refuse_unknown
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.errors import JudgeRefused, JudgeUnavailable, TooManyUnknown
from nemo_magic.judge.protocol import JudgeItem
from tests.judge.faulty_server import (
    Act,
    FaultyServer,
    answering,
    closed_mid_body,
    hang,
    honest,
    reset_mid_body,
    saying,
    slow_drip,
    truncated_json,
)
from tests.waiting import wait_for

SEED = Seed("s", "question", Label.HARMFUL)
ASK = ("response_safety", "refusal")
REPLIES = ["fine", "bad", "fine too", "bad again", "bad still", "fine at last", "so so", "bad by now", "good"]
RIGHT = [Safety.UNSAFE if "bad" in text else Safety.SAFE for text in REPLIES]

TRANSIENT: dict[str, Act] = {
    "reset mid-body": reset_mid_body,
    "closed mid-body": closed_mid_body,
    "500": saying(500, b"oops"),
    "503": saying(503, b"loading", {"Retry-After": "0.05"}),
    "429": saying(429, b"slow down", {"Retry-After": "0.1"}),
    "hang": hang,
    "slow drip": slow_drip,
    "truncated JSON": truncated_json,
    "garbage": saying(200, b"\xff\xfe safe safe safe"),
    "an HTML page": saying(200, b"<html>safe</html>"),
    "wrong ids": answering(lambda rows: [row | {"id": f"x{row['id']}"} for row in rows]),
    "ids exchanged with nobody's": answering(lambda rows: [*rows[:-1], rows[-1] | {"id": "7777"}]),
    "a missing item": answering(lambda rows: rows[1:]),
    "an item twice": answering(lambda rows: [*rows, rows[0]]),
    "one item's verdict for another": answering(lambda rows: [*rows[1:], rows[1]]),
    "an unknown key": answering(lambda rows: [row | {"score": 1} for row in rows]),
    "a value that does not exist": answering(lambda rows: [row | {"refusal": "maybe"} for row in rows]),
    "no verdict at all": saying(200, b'{"verdicts": []}'),
}
OUTAGES = ("reset mid-body", "closed mid-body", "500", "503", "429", "hang", "slow drip")


@pytest.fixture
def server() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*acts: Act, port: int = 0) -> FaultyServer:
        servers.append(FaultyServer(*acts, port=port))
        return servers[-1]

    yield start
    for running in servers:
        running.close()


def config(*urls: str, **changes: object) -> JudgeConfig:
    """Batches of three, with little time to wait."""
    base = JudgeConfig(batch_size=3, request_timeout=0.5, give_up_after=30.0, backoff_initial=0.01, backoff_max=0.1)
    return replace(base, urls=list(urls), **changes)  # type: ignore[arg-type]


def everything(item: Callable[..., JudgeItem]) -> list[JudgeItem]:
    return [item(str(n), text, ask=ASK) for n, text in enumerate(REPLIES)]


def are_right(found: list[Verdict]) -> bool:
    return [v.id for v in found] == [str(n) for n in range(len(REPLIES))] and [
        v.response_safety for v in found
    ] == RIGHT


def rewarded(found: list[Verdict]) -> int:
    rules = RewardConfig()
    return sum(
        pay is not None
        for verdict in found
        for pay in (defender_reward(rules, SEED, verdict), attacker_reward(rules, SEED, verdict, True))
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_goes_by_costs_nothing_but_time(fault: str, server, item) -> None:  # type: ignore[no-untyped-def]
    judge = server(TRANSIENT[fault], TRANSIENT[fault], honest)
    with JudgeClient(config(judge.url)) as client:
        found = client.score(everything(item)).result()
        assert are_right(found)
        assert client.stats()["retries"] == 2
        assert client.stats()["unknown"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_second_replica_does_the_work_of_one_that_fails(fault: str, server, item) -> None:  # type: ignore[no-untyped-def]
    broken, sound = server(TRANSIENT[fault]), server(honest)
    with JudgeClient(config(broken.url, sound.url, protocol_retries=9)) as client:
        for _ in range(3):
            assert are_right(client.score(everything(item)).result())
        # Whatever was answered was answered by the sound one, and every item in exactly one answer that was used.
        assert len(sound.asked) == 9


@pytest.mark.parametrize("fault", [name for name in TRANSIENT if name not in OUTAGES])
def test_what_stays_wrong_is_unknown_and_never_a_reward(fault: str, server, item) -> None:  # type: ignore[no-untyped-def]
    judge = server(TRANSIENT[fault])
    with JudgeClient(config(judge.url, protocol_retries=1)) as client:
        found = client.score(everything(item)).result()
        assert [v.id for v in found] == [str(n) for n in range(len(REPLIES))]
        assert all(v.response_safety is Safety.UNKNOWN and v.refusal is Answer.UNKNOWN for v in found)
        assert all("breaks the protocol" in str(v.error) for v in found)
        assert rewarded(found) == 0
        with pytest.raises(TooManyUnknown, match="9 of 9 samples"):
            refuse_unknown(config(), 9, 9)


@pytest.mark.slow
@pytest.mark.parametrize("fault", OUTAGES)
def test_what_stays_away_ends_with_a_clear_error(fault: str, server, item) -> None:  # type: ignore[no-untyped-def]
    judge = server(TRANSIENT[fault])
    with JudgeClient(config(judge.url, give_up_after=1.2)) as client:
        pending = client.score(everything(item))
        with pytest.raises(JudgeUnavailable, match=rf"no answer from {judge.url}.*judge.give_up_after=1.2"):
            pending.result()


def test_a_refused_connection_is_waited_out_until_somebody_listens(server, item) -> None:  # type: ignore[no-untyped-def]
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with JudgeClient(config(f"http://127.0.0.1:{port}")) as client:
        pending = client.score(everything(item))
        wait_for(lambda: client.stats()["requests"] >= 3)
        assert not pending.done()
        judge = server(honest, port=port)
        assert are_right(pending.result())
        assert len(judge.asked) == 3


def test_a_rest_that_is_asked_for_is_granted(server, item) -> None:  # type: ignore[no-untyped-def]
    judge = server(saying(503, b"", {"Retry-After": "3600"}), honest)
    with JudgeClient(config(judge.url, backoff_max=0.3, max_concurrency=1)) as client:
        assert are_right(client.score(everything(item)).result())
        assert client.stats()["outage_s"] > 0.25  # an hour, cut to judge.backoff_max


def test_a_wrong_judge_behind_one_of_the_urls_is_refused_and_not_used(server, item) -> None:  # type: ignore[no-untyped-def]
    other = server(answering(guard="other@2"))
    with JudgeClient(config(other.url, expect="scripted@1")) as client:
        message = rf"{other.url} is the guard other@2; judge.expect is scripted@1"
        with pytest.raises(JudgeRefused, match=message):
            client.score(everything(item)).result()
    first, second = server(honest), server(answering(guard="other@2"))
    with JudgeClient(config(first.url, second.url)) as client, pytest.raises(JudgeRefused, match="the first to answer"):
        client.score(everything(item)).result()


def test_a_replica_that_dies_and_returns_gets_work_again(server, item) -> None:  # type: ignore[no-untyped-def]
    one, two = server(honest), server(honest)
    with JudgeClient(config(one.url, two.url)) as client:
        assert are_right(client.score(everything(item)).result())
        one.close()
        for _ in range(3):
            assert are_right(client.score(everything(item)).result())
        again = server(honest, port=one.port)

        def is_asked() -> bool:
            assert are_right(client.score(everything(item)).result())
            return bool(again.asked)

        wait_for(is_asked)


def test_all_replicas_gone_and_one_back_is_an_outage_and_no_more(server, item) -> None:  # type: ignore[no-untyped-def]
    one, two = server(honest), server(honest)
    with JudgeClient(config(one.url, two.url)) as client:
        assert are_right(client.score(everything(item)).result())
        one.close()
        two.close()
        pending = client.score(everything(item))
        wait_for(lambda: client.stats()["outage_s"] > 0.2)
        assert not pending.done()
        server(honest, port=two.port)
        assert are_right(pending.result())


@pytest.mark.slow
def test_a_slow_answer_is_asked_for_twice_and_used_once(server, item) -> None:  # type: ignore[no-untyped-def]
    held = threading.Event()

    def held_back(connection, body, closing):  # type: ignore[no-untyped-def]
        held.wait(20)
        honest(connection, body, closing)

    slow, quick = server(*[honest] * 60, held_back), server(honest)
    # A request that takes long is not failed here: without the second one the answer would never come.
    settings = config(slow.url, quick.url, hedge=True, request_timeout=60.0, max_concurrency=1)
    with JudgeClient(settings) as client:
        try:
            for _ in range(60):
                assert are_right(client.score(everything(item)).result())
            assert len(slow.asked) > 60
            assert client.stats()["hedges"] > 0
            assert client.stats()["unknown"] == 0
            assert client.stats()["items"] == 60 * len(REPLIES)
        finally:
            held.set()


def test_no_more_is_under_way_than_was_allowed(server, item) -> None:  # type: ignore[no-untyped-def]
    busy, most, lock, release = 0, 0, threading.Lock(), threading.Event()

    def counted(connection, body, closing):  # type: ignore[no-untyped-def]
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        release.wait(20)
        with lock:
            busy -= 1
        honest(connection, body, closing)

    judge = server(counted)
    with JudgeClient(config(judge.url, batch_size=1, max_concurrency=2, request_timeout=30.0)) as client:
        pending = client.score(everything(item))
        wait_for(lambda: busy == 2)
        release.set()
        assert are_right(pending.result())
    assert most == 2
