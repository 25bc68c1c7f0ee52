import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest

from nemo_magic.judge.app import create_app
from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.net.hosts import listen
from tests.judge.keyword_guards import (
    AbsentGuard,
    BrokenBatchGuard,
    BrokenStartGuard,
    ForgetfulGuard,
    KeywordGuard,
    SlowStartGuard,
)
from tests.judge.serving import body, serving
from tests.waiting import wait_for

CFG = JudgeConfig(server=JudgeServerConfig(max_items=4, max_chars=100, max_body_mb=0.01))


def test_one_failing_item_is_unknown_with_an_error_and_its_neighbours_are_judged(item):
    with serving(create_app(KeywordGuard(), CFG)) as http:
        reply = http.post("/v1/judge", content=body(item("1", "bad"), item("2", "crash"), item("3", "mumble")))
    first, second, third = reply.json()["verdicts"]
    assert first["response_safety"] == "unsafe"
    assert "error" not in first
    assert {second[field] for field in ("prompt_safety", "response_safety", "refusal", "helpful")} == {"unknown"}
    assert second["error"] == "LookupError: cannot read this one"
    assert (third["helpful"], third["response_safety"]) == ("unknown", "safe")
    assert first["guard"] == second["guard"] == "keyword@1"


def test_a_field_that_was_not_asked_is_absent(item):
    with serving(create_app(KeywordGuard(), CFG)) as http:
        reply = http.post("/v1/judge", content=body(item("1", "bad", ask=("refusal",))))
    [verdict] = reply.json()["verdicts"]
    assert verdict == {"id": "1", "refusal": "no", "categories": [], "disagreed": [], "guard": "keyword@1"}


def test_limits_are_answered_with_413_naming_them(item):
    with serving(create_app(KeywordGuard(), CFG)) as http:
        many = http.post("/v1/judge", content=body(*(item(str(n), "x") for n in range(5))))
        long = http.post("/v1/judge", content=body(item("1", "x"), item("2", "y" * 100)))
        huge = http.post("/v1/judge", content=b"x" * 20_000)
    assert (many.status_code, many.json()["detail"]) == (413, "5 items in one request, at most 4 are taken")
    assert (long.status_code, long.json()["detail"]) == (413, "item '2' has 118 characters, at most 100 are taken")
    assert (huge.status_code, huge.json()["detail"]) == (413, "the body is longer than judge.server.max_body_mb=0.01")


def test_a_malformed_request_is_answered_with_422_without_repeating_its_texts(item):
    request = json.loads(body(item("1", "private words")))
    with serving(create_app(KeywordGuard(), CFG)) as http:
        request["items"][0]["ask"] = ["refusal", "mood"]
        reply = http.post("/v1/judge", json=request)
        assert http.post("/v1/judge", content=b"{").status_code == 422
        assert http.post("/v1/judge", json={"items": []}).status_code == 422
    assert reply.status_code == 422
    assert "ask" in reply.text
    assert "private" not in reply.text


def test_a_server_with_a_token_judges_for_its_bearer_only(item, monkeypatch):
    monkeypatch.setenv("JUDGE_TEST_TOKEN", "s3cret")
    with serving(create_app(KeywordGuard(), replace(CFG, token_env="JUDGE_TEST_TOKEN"))) as http:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            assert http.post("/v1/judge", content=body(item("1", "x")), headers=header).status_code == 401
            assert http.get("/v1/guard", headers=header).status_code == 401
        assert http.get("/healthz").status_code == 200
        wait_for(lambda: http.get("/readyz").status_code == 200)
        right = {"Authorization": "Bearer s3cret"}
        assert http.post("/v1/judge", content=body(item("1", "x")), headers=right).status_code == 200
        assert http.get("/v1/guard", headers=right).json() == {
            "guard": "keyword@1",
            "answers": ["helpful", "intent_preserved", "prompt_safety", "refusal", "response_safety"],
            "max_items": 4,
            "max_chars": 100,
        }


def test_a_server_that_others_can_reach_needs_a_token(monkeypatch):
    monkeypatch.setenv("JUDGE_TEST_TOKEN", "")
    for host in ("0.0.0.0", "::", "judge.example.org"):
        open_to_others = replace(CFG, server=replace(CFG.server, host=host))
        with pytest.raises(ValueError, match=r"judge\.token_env"):
            create_app(KeywordGuard(), open_to_others)
        with pytest.raises(ValueError, match="JUDGE_TEST_TOKEN"):
            create_app(KeywordGuard(), replace(open_to_others, token_env="JUDGE_TEST_TOKEN"))


def test_a_server_is_ready_only_once_its_guard_is_loaded(item):
    guard = SlowStartGuard()
    with serving(create_app(guard, CFG)) as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 503
        assert http.post("/v1/judge", content=body(item("1", "x"))).status_code == 503
        guard.gate.set()
        wait_for(lambda: http.get("/readyz").status_code == 200)
        assert http.post("/v1/judge", content=body(item("1", "x"))).status_code == 200


def test_a_guard_that_failed_to_load_is_never_ready():
    with serving(create_app(BrokenStartGuard(), CFG)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 500)
        assert "FileNotFoundError" in http.get("/readyz").text
        assert "no weights here" not in http.get("/readyz").text


def test_a_guard_that_is_away_is_an_outage_and_no_verdict(item):
    with serving(create_app(AbsentGuard(), CFG)) as http:
        reply = http.post("/v1/judge", content=body(item("1", "x")))
    assert reply.status_code == 503
    assert "retry-after" in reply.headers


@pytest.mark.parametrize("guard", [BrokenBatchGuard(), ForgetfulGuard()])
def test_a_guard_that_answers_wrongly_yields_unknown_verdicts(item, guard):
    with serving(create_app(guard, CFG)) as http:
        verdicts = http.post("/v1/judge", content=body(item("1", "x"), item("2", "y"))).json()["verdicts"]
    assert [verdict["response_safety"] for verdict in verdicts] == ["unknown", "unknown"]
    assert all(verdict["error"] for verdict in verdicts)


@contextmanager
def server_process(folder: Path, cfg: JudgeConfig, *extra: str) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "judge.json").write_text(json.dumps(asdict(cfg)))
    command = [sys.executable, "-m", "nemo_magic.judge.server", "--config", str(folder / "judge.json")]
    process = subprocess.Popen(
        [*command, "--port-file", str(folder / "port"), *extra], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.process
def test_a_terminated_server_finishes_what_it_was_asked(item, tmp_path, quick):
    paths = {"entered": str(tmp_path / "entered"), "gate": str(tmp_path / "gate")}
    cfg = replace(quick, guard="tests.judge.keyword_guards:GatedGuard", guard_config=paths)
    with server_process(tmp_path, cfg) as process:
        wait_for((tmp_path / "port").exists)
        url = f"http://127.0.0.1:{(tmp_path / 'port').read_text().strip()}"
        replies = []
        # The connection waits in the listener's queue until the server is up.
        ask = threading.Thread(target=lambda: replies.append(_judge_when_ready(url, body(item("1", "bad")))))
        ask.start()
        wait_for((tmp_path / "entered").exists)
        process.send_signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        ask.join(timeout=20)
        assert process.wait(timeout=20) == 0
    assert replies[0].json()["verdicts"][0]["response_safety"] == "unsafe"


def _judge_when_ready(url: str, content: str) -> httpx.Response:
    wait_for(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200)
    return httpx.post(f"{url}/v1/judge", content=content, timeout=20, trust_env=False)


@pytest.mark.process
def test_a_server_whose_guard_fails_to_load_ends_and_says_why(tmp_path, quick):
    with server_process(tmp_path, replace(quick, guard="tests.judge.keyword_guards:BrokenStartGuard")) as process:
        output = process.communicate(timeout=20)[0].decode()
    assert process.returncode == 1
    assert "no weights here" in output


@pytest.mark.process
def test_a_server_ends_with_its_parent():
    parent = (
        "import sys, time\n"
        "from nemo_magic.judge.config import JudgeConfig\n"
        "from nemo_magic.judge.local import launch_local\n"
        "local = launch_local(JudgeConfig(guard='tests.judge.keyword_guards:KeywordGuard'))\n"
        "print(local.pid, local.url, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, url = process.stdout.readline().split()
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    process.kill()
    process.communicate()

    def gone() -> bool:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        # An orphan that has ended may wait for whoever adopted it to take note.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    wait_for(gone)


def test_answers_are_not_held_back_until_their_headers_are_acknowledged() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
