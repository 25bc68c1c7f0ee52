import json
import os
import signal
import socket
from dataclasses import replace

import pytest

from nemo_magic.game.episode import Answer, Label, Safety, Seed
from nemo_magic.game.rewards import RewardConfig, attacker_reward, defender_reward
from nemo_magic.judge.client import JudgeClient, refuse_unknown
from nemo_magic.judge.errors import JudgeRefused, JudgeUnavailable, TooManyUnknown
from nemo_magic.judge.local import launch_local
from tests.waiting import wait_for

SEED = Seed("s", "question", Label.BENIGN)


@pytest.fixture
def client(judge, quick):
    with JudgeClient(replace(quick.at(judge.url), batch_size=3)) as client:
        yield client


@pytest.mark.process
def test_verdicts_come_in_the_order_of_their_items_across_batches(client, item):
    responses = ["bad one", "sorry", "fine", "sorry, bad", "mumble", "fine too", "bad two"]
    verdicts = client.score([item(str(n), response) for n, response in enumerate(responses)]).result()
    assert [verdict.id for verdict in verdicts] == [str(n) for n in range(7)]
    assert [verdict.response_safety for verdict in verdicts] == [
        Safety.UNSAFE if "bad" in response else Safety.SAFE for response in responses
    ]
    assert [verdict.refusal for verdict in verdicts] == [
        Answer.YES if "sorry" in response else Answer.NO for response in responses
    ]
    assert verdicts[4].helpful is Answer.UNKNOWN
    assert {verdict.guard for verdict in verdicts} == {"keyword@1"}
    assert client.stats()["requests"] == 3
    assert client.stats()["unknown"] == 1


@pytest.mark.process
def test_identical_items_are_judged_once_and_answered_each(client, item):
    same = [item(str(n), "bad") for n in range(4)]
    verdicts = client.score([*same, item("other", "fine")]).result()
    assert [(v.id, v.response_safety) for v in verdicts] == [(str(n), Safety.UNSAFE) for n in range(4)] + [
        ("other", Safety.SAFE)
    ]
    assert client.stats()["duplicates"] == 3
    assert client.stats()["requests"] == 1


@pytest.mark.process
def test_nothing_to_judge_needs_no_judge(quick):
    with JudgeClient(quick.at("http://127.0.0.1:1")) as client:
        assert client.score([]).result() == []


@pytest.mark.process
def test_two_items_of_one_id_cannot_be_told_apart_and_are_refused(client, item):
    with pytest.raises(ValueError, match="same id"):
        client.score([item("1", "x"), item("1", "y")])


@pytest.mark.process
def test_an_item_beyond_the_limits_is_unknown_and_costs_the_others_nothing(client, item):
    verdicts = client.score([item("1", "bad"), item("2", "x" * 500), item("3", "fine")]).result()
    assert [verdict.response_safety for verdict in verdicts] == [Safety.UNSAFE, Safety.UNKNOWN, Safety.SAFE]
    assert verdicts[1].error is not None
    assert "at most 200" in verdicts[1].error
    assert defender_reward(RewardConfig(), SEED, verdicts[1]) is None


@pytest.mark.process
def test_a_batch_larger_than_the_server_takes_is_split(judge, quick, item):
    with JudgeClient(replace(quick.at(judge.url), batch_size=100)) as client:
        verdicts = client.score([item(str(n), f"fine {n}") for n in range(20)]).result()
        assert all(verdict.response_safety is Safety.SAFE for verdict in verdicts)
        assert client.wait_ready(20).max_items == 8
        before = client.stats()["requests"]
        client.score([item(str(n), f"fine {n}") for n in range(20)]).result()
        assert client.stats()["requests"] - before == 3


@pytest.mark.process
def test_a_judge_killed_mid_call_is_waited_for_and_nothing_is_rewarded_without_a_verdict(tmp_path, quick, item):
    entered, gate = tmp_path / "entered", tmp_path / "gate"
    port = free_port()
    gated = replace(
        quick,
        guard="tests.judge.keyword_guards:GatedGuard",
        guard_config={"entered": str(entered), "gate": str(gate)},
        server=replace(quick.server, port=port),
    )
    responses = [f"{word} {n}" for n in range(6) for word in ("bad", "sorry", "fine")]
    with launch_local(gated) as local, JudgeClient(replace(quick.at(local.url), batch_size=4)) as client:
        future = client.score([item(str(n), response) for n, response in enumerate(responses)])
        wait_for(entered.exists)
        os.kill(local.pid, signal.SIGKILL)
        wait_for(lambda: client.stats()["outage_s"] > 0)
        assert not future.done()
        # Comes back on the same port, and only now answers at all: whatever is rewarded was judged after the kill.
        gate.touch()
        verdicts = future.result(timeout=30)
        assert client.stats()["retries"] > 0
    for verdict, response in zip(verdicts, responses, strict=True):
        assert verdict.response_safety is (Safety.UNSAFE if "bad" in response else Safety.SAFE)
        assert verdict.refusal is (Answer.YES if "sorry" in response else Answer.NO)
        reward = defender_reward(RewardConfig(), SEED, verdict)
        assert reward is not None
        assert reward.parts["harm"] == (-1.0 if "bad" in response else 1.0)


@pytest.mark.process
def test_a_second_replica_takes_over_from_one_that_is_gone(judge, quick, item):
    cfg = replace(quick.at(judge.url), urls=[f"http://127.0.0.1:{free_port()}", judge.url], batch_size=1)
    with JudgeClient(cfg) as client:
        verdicts = client.score([item(str(n), f"bad {n}") for n in range(4)]).result()
    assert [verdict.response_safety for verdict in verdicts] == [Safety.UNSAFE] * 4


@pytest.mark.process
def test_a_judge_that_never_answers_ends_the_wait_with_a_clear_error(quick, item):
    cfg = replace(quick.at(f"http://127.0.0.1:{free_port()}"), give_up_after=0.2)
    with JudgeClient(cfg) as client:
        with pytest.raises(JudgeUnavailable, match=r"judge\.give_up_after=0\.2.*ConnectError"):
            client.score([item("1", "x")]).result()
        with pytest.raises(JudgeUnavailable, match="no judge is ready"):
            client.wait_ready(0.1)


@pytest.mark.process
def test_a_judge_that_hangs_is_an_outage(quick, item):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cfg = replace(quick.at(url), request_timeout=0.05, give_up_after=0.2)
        with JudgeClient(cfg) as client, pytest.raises(JudgeUnavailable, match=r"judge\.request_timeout=0\.05"):
            client.score([item("1", "x")]).result()


@pytest.mark.process
def test_a_judge_that_is_overloaded_is_asked_again(quick, item, scripted, honest_reply):
    server = scripted(lambda _: (503, b"busy"), lambda _: (429, b"slow down"), lambda _: (500, b"oops"), honest_reply)
    with JudgeClient(quick.at(server.url)) as client:
        [verdict] = client.score([item("1", "x")]).result()
        assert client.stats()["retries"] == 3
    assert verdict.response_safety is Safety.SAFE


@pytest.mark.process
def test_patience_begins_when_the_waiting_begins_however_long_the_client_was_idle(quick, item, scripted, honest_reply):
    now = [0.0]
    server = scripted(honest_reply, lambda _: (503, b"busy"), honest_reply)
    with JudgeClient(replace(quick.at(server.url), give_up_after=60), clock=lambda: now[0]) as client:
        client.score([item("1", "x")]).result()
        now[0] += 1000
        assert client.score([item("2", "y")]).result()[0].response_safety is Safety.SAFE


@pytest.mark.process
def test_patience_lasts_as_long_as_the_judge_answers_anyone(quick, item, scripted, honest_reply):
    now = [0.0]

    def reply(body):
        others = sum(body["items"][0]["id"] != "stuck" for body in server.bodies)
        if body["items"][0]["id"] == "stuck" and others < 10:
            return 503, b"busy"
        now[0] += 50
        return honest_reply(body)

    server = scripted(reply)
    with JudgeClient(replace(quick.at(server.url), give_up_after=60), clock=lambda: now[0]) as client:
        stuck = client.score([item("stuck", "x")])
        wait_for(lambda: server.bodies)
        for n in range(10):
            seen = len(server.bodies)
            wait_for(lambda seen=seen: len(server.bodies) > seen)
            client.score([item(str(n), f"y {n}")]).result()
        assert stuck.result()[0].response_safety is Safety.SAFE


@pytest.mark.process
def test_a_wrong_token_stops_at_once_and_the_right_one_judges(quick, item, monkeypatch):
    monkeypatch.setenv("JUDGE_TEST_TOKEN", "right")
    with launch_local(replace(quick, token_env="JUDGE_TEST_TOKEN")) as local:
        with JudgeClient(local.config) as client:
            assert client.wait_ready(20).guard == "keyword@1"
            assert client.score([item("1", "bad")]).result()[0].response_safety is Safety.UNSAFE
        monkeypatch.setenv("JUDGE_TEST_TOKEN", "wrong")
        with JudgeClient(local.config) as client:
            with pytest.raises(JudgeRefused, match="401"):
                client.wait_ready(20)
            with pytest.raises(JudgeRefused, match="401"):
                client.score([item("1", "bad")]).result()


def change(verdicts, **fields):
    return [verdict | fields if n == 0 else verdict for n, verdict in enumerate(verdicts)]


MALFORMED = {
    "short": lambda verdicts: verdicts[:-1],
    "long": lambda verdicts: [*verdicts, verdicts[0] | {"id": "more"}],
    "duplicated": lambda verdicts: [verdicts[0], verdicts[0]],
    "mislabelled": lambda verdicts: change(verdicts, id="someone else"),
    "missing an asked field": lambda verdicts: [{k: v for k, v in d.items() if k != "refusal"} for d in verdicts],
    "asked field null": lambda verdicts: change(verdicts, refusal=None),
    "a value that does not exist": lambda verdicts: change(verdicts, refusal="maybe"),
    "a value of the wrong type": lambda verdicts: change(verdicts, refusal=True),
    "a key that does not exist": lambda verdicts: change(verdicts, score=1.0),
    "an error though all is known": lambda verdicts: change(verdicts, error="could not read it"),
    "no guard": lambda verdicts: [{k: v for k, v in d.items() if k != "guard"} for d in verdicts],
}


def malformed_reply(kind):
    if kind == "not JSON":
        return lambda _: (200, b"<html>all good</html>")
    if kind == "empty":
        return lambda _: (200, b"")

    def reply(body):
        values = {"prompt_safety": "safe", "response_safety": "safe"}
        good = [
            {"id": item["id"], "guard": "g@1"} | {field: values.get(field, "no") for field in item["ask"]}
            for item in body["items"]
        ]
        return 200, json.dumps({"verdicts": MALFORMED[kind](good)}).encode()

    return reply


@pytest.mark.process
@pytest.mark.parametrize("kind", [*MALFORMED, "not JSON", "empty"])
def test_a_malformed_answer_is_retried_then_unknown_and_never_a_reward(kind, quick, item, scripted):
    server = scripted(malformed_reply(kind))
    with JudgeClient(replace(quick.at(server.url), protocol_retries=2)) as client:
        verdicts = client.score([item("1", "x"), item("2", "y")]).result()
        assert client.stats()["protocol_errors"] == 3
        assert client.stats()["unknown"] == 2
    assert len(server.bodies) == 3
    for verdict, id in zip(verdicts, "12", strict=True):
        assert verdict.id == id
        assert verdict.error is not None
        assert "breaks the protocol" in verdict.error
        assert verdict.response_safety is Safety.UNKNOWN
        assert verdict.refusal is Answer.UNKNOWN
        assert defender_reward(RewardConfig(), SEED, verdict) is None
        assert attacker_reward(RewardConfig(), SEED, verdict, format_ok=True) is None


@pytest.mark.process
def test_a_field_that_was_not_asked_breaks_the_protocol(quick, item, scripted):
    answer = {"id": "1", "guard": "g", "refusal": "no", "helpful": "yes"}
    server = scripted(lambda _: (200, json.dumps({"verdicts": [answer]}).encode()))
    with JudgeClient(replace(quick.at(server.url), protocol_retries=0)) as client:
        [verdict] = client.score([item("1", "x", ask=("refusal",))]).result()
    assert verdict.refusal is Answer.UNKNOWN
    assert verdict.helpful is None


@pytest.mark.process
def test_one_malformed_answer_followed_by_a_right_one_is_a_verdict(quick, item, scripted, honest_reply):
    server = scripted(malformed_reply("short"), honest_reply)
    with JudgeClient(quick.at(server.url)) as client:
        verdicts = client.score([item("1", "x"), item("2", "y")]).result()
    assert [verdict.response_safety for verdict in verdicts] == [Safety.SAFE, Safety.SAFE]


@pytest.mark.process
def test_closing_cancels_what_is_pending(quick, item):
    client = JudgeClient(quick.at(f"http://127.0.0.1:{free_port()}"))
    future = client.score([item("1", "x")])
    client.close()
    client.close()
    assert future.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        client.score([item("1", "x")])


def test_too_many_unknown_samples_are_refused_naming_the_numbers(quick):
    refuse_unknown(quick, unknown=10, total=100)
    refuse_unknown(quick, unknown=0, total=0)
    with pytest.raises(TooManyUnknown, match="11 of 100"):
        refuse_unknown(quick, unknown=11, total=100)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
