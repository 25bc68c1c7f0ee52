"""What the server does with those who mean it ill, who are too many, or who want to know how it is."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.checks import not_a_server_error

from nemo_magic.judge.app import create_app
from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.metrics import Metrics
from nemo_magic.judge.protocol import JudgeItem, JudgeVerdict
from nemo_magic.judge.server import JsonLines
from tests.judge.keyword_guards import AbsentGuard, GatedGuard, KeywordGuard
from tests.judge.serving import body, serving
from tests.waiting import wait_for

CFG = JudgeConfig(server=JudgeServerConfig(max_items=4, max_chars=100, max_body_mb=0.01))
TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def served() -> Iterator[httpx.Client]:
    with serving(create_app(KeywordGuard(), CFG)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        yield http


def figures(http: httpx.Client) -> dict[str, float]:
    """name{labels} → value of the metrics page."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_no_request_that_the_description_allows_is_an_error_of_the_server(served: httpx.Client) -> None:
    schema = schemathesis.openapi.from_url(f"{served.base_url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} == {"/healthz", "/readyz", "/metrics", "/v1/guard", "/v1/judge"}
    seen: set[int] = set()
    for operation in operations:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def run(case: schemathesis.Case) -> None:
            response = case.call(base_url=str(served.base_url))
            case.validate_response(response, checks=[not_a_server_error])
            seen.add(response.status_code)

        run()
    assert 200 in seen
    assert seen <= {200, 413, 422}
    assert {served.get(path).status_code for path in ("/docs", "/redoc")} == {404}


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00", b"", b"null", b"[]", b'{"items": "x"}', b'{"items": [' * 50_00, b"[" * 100_000,
        b'{"items": [{"id": "\xc3\x28", "conversation": [], "ask": []}]}', b'{"items": [1e999999]}',
        b'{"items": [{"id": "1", "conversation": [{"role": "user", "content": "\\ud800"}], "ask": ["refusal"]}]}',
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_request_is_refused(served: httpx.Client, content: bytes) -> None:
    reply = served.post("/v1/judge", content=content)
    assert reply.status_code in (413, 422), reply.text


def test_a_body_of_100_mb_is_refused_and_not_kept(served: httpx.Client) -> None:
    def memory() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def stream() -> Iterator[bytes]:
        chunk = b"x" * 1_000_000
        for _ in range(100):
            yield chunk

    before = memory()
    reply = served.post("/v1/judge", content=stream())
    assert (reply.status_code, reply.json()["detail"]) == (413, "the body is longer than judge.server.max_body_mb=0.01")
    assert memory() - before < 30_000


def test_the_metrics_page_counts_what_happened(item: Callable[..., JudgeItem]) -> None:
    with serving(create_app(KeywordGuard(), CFG)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        http.post("/v1/judge", content=body(item("1", "bad"), item("2", "mumble"), item("3", "crash")))
        http.post("/v1/judge", content="{")
        found = figures(http)
    assert found["judge_requests_total status=200"] == found["judge_requests_total status=422"] == 1
    assert found["judge_verdicts_total guard=keyword@1"] == 3
    assert found["judge_unknown_total field=helpful guard=keyword@1"] == 2
    assert found["judge_unknown_total field=refusal guard=keyword@1"] == 1
    assert found["judge_batch_items_sum"] == 3
    assert found["judge_request_seconds_count"] == 1
    assert found["judge_pending_items"] == 0
    assert found["judge_ready"] == 1


def test_guards_may_tell_only_what_is_exported() -> None:
    metrics = Metrics()
    metrics.count("cache_hits", 2, guard="g")
    metrics.observe("model_seconds", 0.2, guard="g")
    assert b'judge_cache_hits_total{guard="g"} 2.0' in metrics.page()
    assert b'judge_model_seconds_count{guard="g"} 1.0' in metrics.page()
    with pytest.raises(KeyError):
        metrics.count("moods", guard="g")


def test_a_guard_that_cannot_judge_its_probe_is_not_ready_and_its_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(create_app(AbsentGuard(), CFG)) as http:
        wait_for(lambda: "probe was not judged" in http.get("/readyz").text)
        assert http.get("/readyz").status_code == http.head("/readyz").status_code == 503
        # Whoever asks needs no token, and the words may be those of the guard's server.
        assert "its engine restarts" not in http.get("/readyz").text
        assert "its engine restarts" in caplog.text
        assert figures(http)["judge_ready"] == 0


def test_a_guard_that_returns_is_ready_again() -> None:
    class Moody(KeywordGuard):
        away = True

        async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
            if self.away:
                raise ConnectionError("not today")
            return await super().judge(items)

    guard = Moody()
    with serving(create_app(guard, replace(CFG, server=replace(CFG.server, probe_interval=0.05)))) as http:
        wait_for(lambda: "probe was not judged" in http.get("/readyz").text)
        guard.away = False
        wait_for(lambda: http.get("/readyz").status_code == 200)
        guard.away = True
        wait_for(lambda: http.get("/readyz").status_code == 503)


def test_more_than_may_be_under_judgement_is_told_to_come_again(item, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    entered, gate = tmp_path / "entered", tmp_path / "gate"
    cfg = replace(CFG, server=replace(CFG.server, max_pending=3))
    replies: list[httpx.Response] = []
    with serving(create_app(GatedGuard(str(entered), str(gate)), cfg)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        first = threading.Thread(
            target=lambda: replies.append(http.post("/v1/judge", content=body(item("1", "bad"), item("2", "x"))))
        )
        first.start()
        wait_for(entered.exists)
        refused = http.post("/v1/judge", content=body(item("3", "x"), item("4", "y")))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["detail"] == "2 items are under judgement, at most 3 may be"
        assert figures(http)["judge_pending_items"] == 2
        gate.touch()
        first.join()
        # Alone, even four are taken.
        assert http.post("/v1/judge", content=body(*(item(str(n), "x") for n in range(4)))).status_code == 200
    assert replies[0].json()["verdicts"][0]["response_safety"] == "unsafe"


def test_judging_that_takes_too_long_is_no_verdict(item, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    guard = GatedGuard(str(tmp_path / "entered"), str(tmp_path / "never"))
    with serving(create_app(guard, replace(CFG, server=replace(CFG.server, request_timeout=0.1)))) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        reply = http.post("/v1/judge", content=body(item("1", "x")))
        assert figures(http)["judge_pending_items"] == 0
    assert (reply.status_code, reply.json()["detail"]) == (503, "not judged within judge.server.request_timeout=0.1 s")


def test_whoever_still_waits_when_the_server_has_to_end_is_told_so(item, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    entered = tmp_path / "entered"
    app = create_app(GatedGuard(str(entered), str(tmp_path / "never")), CFG)
    replies: list[httpx.Response] = []
    with serving(app) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        waiting = threading.Thread(target=lambda: replies.append(http.post("/v1/judge", content=body(item("1", "x")))))
        waiting.start()
        wait_for(entered.exists)
        app.state.judge.loading.get_loop().call_soon_threadsafe(app.state.judge.ending.set)
        waiting.join()
    assert (replies[0].status_code, replies[0].json()["detail"]) == (503, "the server ends")


def test_strangers_learn_nothing_but_that_it_lives(item, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("JUDGE_TEST_TOKEN", "s3cret")
    with serving(create_app(KeywordGuard(), replace(CFG, token_env="JUDGE_TEST_TOKEN"))) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        for headers in ({}, {"Authorization": "Basic s3cret"}, {"Authorization": "Bearer s3cre"}):
            for path in ("/metrics", "/v1/guard", "/openapi.json"):
                assert http.get(path, headers=headers).status_code == 401
            # Before a byte of the body is read.
            assert http.post("/v1/judge", content=b"x" * 20_000, headers=headers).status_code == 401
        assert http.get("/metrics", headers=TOKEN).status_code == 200


@pytest.mark.parametrize("log_texts", [False, True])
def test_the_log_holds_texts_only_where_that_was_asked_for(
    log_texts: bool, item: Callable[..., JudgeItem], caplog: pytest.LogCaptureFixture
) -> None:
    cfg = replace(CFG, server=replace(CFG.server, log_texts=log_texts))
    with caplog.at_level(logging.DEBUG), serving(create_app(KeywordGuard(), cfg)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        http.post("/v1/judge", content=body(item("1", "private words"), item("2", "crash")))
        http.post("/v1/judge", content=body(item("1", "private words")).replace("refusal", "mood"))
    lines = [JsonLines().format(record) for record in caplog.records]
    judged = next(json.loads(line) for line in lines if json.loads(line)["message"] == "judged")
    assert (judged["items"], judged["unknown"]) == (2, 1)
    assert any("private" in line for line in lines) is log_texts


def test_texts_that_come_together_are_judged_while_health_is_asked_for(item, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The loop is free while a guard works: a large batch must not look like a dead server."""

    class Busy(KeywordGuard):
        def opinion(self, item: JudgeItem):  # type: ignore[no-untyped-def]
            if item.id != "probe":
                (tmp_path / "busy").touch()
                wait_for((tmp_path / "asked").exists)
            return super().opinion(item)

    with serving(create_app(Busy(), CFG)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        replies: list[httpx.Response] = []
        judging = threading.Thread(target=lambda: replies.append(http.post("/v1/judge", content=body(item("1", "x")))))
        judging.start()
        wait_for((tmp_path / "busy").exists)
        assert http.get("/healthz").status_code == 200
        (tmp_path / "asked").touch()
        judging.join()
    assert replies[0].status_code == 200
