"""What ``judge-check --protocol`` finds: nothing in a judge of this package, and each departure by the right name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_magic.cli import main
from nemo_magic.judge.app import create_app
from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.conformance import Check, check_protocol
from tests.judge.keyword_guards import KeywordGuard, NarrowGuard
from tests.judge.serving import serving
from tests.waiting import wait_for

TOKEN = "CONFORMANCE_TOKEN"
LIMITS = JudgeServerConfig(max_items=16, max_chars=400)

Change = Callable[[str, bytes, int, bytes], tuple[int, bytes]]
"""Path and body of a request, status and body of the reply → status and body that are sent instead."""


class Tampering:
    """An application whose replies are changed on their way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.change: Change | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.change is None:
            await self._app(scope, receive, send)
            return
        asked, said, status = bytearray(), bytearray(), 0

        async def listen() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def collect(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            said.extend(message.get("body", b""))

        await self._app(scope, listen, collect)
        status, content = self.change(scope["path"], bytes(asked), status, bytes(said))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[httpx.Client, Tampering]]:
    app = Tampering(create_app(KeywordGuard(), JudgeConfig(server=LIMITS)))
    with serving(app) as http:  # type: ignore[arg-type]
        wait_for(lambda: http.get("/readyz").status_code == 200)
        yield http, app


def check(served: tuple[httpx.Client, Tampering], change: Change | None) -> list[Check]:
    http, app = served
    app.change = change
    try:
        return list(check_protocol(JudgeConfig(urls=[str(http.base_url)])))
    finally:
        app.change = None


def test_a_judge_of_this_package_passes_with_its_token_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN, "s3cret")
    with serving(create_app(NarrowGuard(), JudgeConfig(token_env=TOKEN, server=LIMITS))) as http:
        wait_for(lambda: http.get("/readyz").status_code == 200)
        assert main(["judge-check", "--protocol", str(http.base_url), "--token-env", TOKEN]) == 0
        passed = capsys.readouterr().out.splitlines()
        assert main(["judge-check", "--protocol", str(http.base_url)]) == 1
    assert all(line.startswith("ok  ") for line in passed[:-2])
    assert passed[-1] == f"{len(passed) - 2} of {len(passed) - 2} checks ok"
    assert "ok      helpful asked alone (helpful unknown)" in passed
    assert "ok      a batch of 16, the items asking for different fields (12 with something unknown)" in passed
    assert "ok      refused: more items than max_items=16 (413)" in passed
    assert "ok      refused: /v1/judge with a wrong token (401)" in passed
    # Without the token it is not known who judges: nothing more is asked.
    refused = capsys.readouterr().out.splitlines()
    assert len(refused) == 4
    assert "came 401" in refused[1]
    assert "--token-env" in refused[1]


def verdicts(change: Callable[[list[dict[str, Any]]], Any]) -> Change:
    """The answers, after ``change`` of their verdicts."""

    def of(path: str, asked: bytes, status: int, said: bytes) -> tuple[int, bytes]:
        if path != "/v1/judge" or status != 200:
            return status, said
        found = json.loads(said)["verdicts"]
        changed = change(found)
        return status, json.dumps({"verdicts": found if changed is None else changed}).encode()

    return of


def each(change: Callable[[dict[str, Any]], Any]) -> Change:
    """The answers, after ``change`` of every verdict."""
    return verdicts(lambda found: [change(one) for one in found] and None)


def info(**changes: Any) -> Change:
    """Another ``/v1/guard``."""
    return lambda path, asked, status, said: (
        (status, json.dumps(json.loads(said) | changes).encode()) if path == "/v1/guard" else (status, said)
    )


def loses_neighbours(found: list[dict[str, Any]]) -> None:
    """Verdicts go to the item beside."""
    ids = [one["id"] for one in found]
    for one, id in zip(found, ids[1:] + ids[:1], strict=True):
        one["id"] = id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "failing", "words"),
    [
        (info(motto="just"), "GET /v1/guard", "a key is unknown"),
        (info(answers=[]), "GET /v1/guard", "a field in answers"),
        (info(answers=["colour"]), "GET /v1/guard", "answers.0"),
        (info(guard="other@2"), "refusal asked alone", "names the guard keyword@1, which other@2 is not"),
        (info(answers=["refusal"]), "helpful asked alone", "expected helpful unknown"),
        (each(lambda one: one.update(colour="blue")), "refusal asked alone", "a key is unknown"),
        (each(lambda one: one.update(refusal="No")), "refusal asked alone", "yes"),
        (each(lambda one: one.update(helpful="yes")), "refusal asked alone", "answers helpful, which was not asked"),
        (each(lambda one: one.pop("refusal", None)), "refusal asked alone", "lacks refusal"),
        (each(lambda one: one.update(error="odd")), "refusal asked alone", "nothing in it is unknown"),
        (verdicts(lambda found: found[:15]), "a batch of 16", "15 verdicts for 16 items"),
        (verdicts(loses_neighbours), "a batch of 16", "lacks "),
        (each(lambda one: one.update(id=one["id"].strip()[:64])), "an id of 200 characters", "no verdict for item"),
        (lambda path, asked, status, said: (503 if path == "/readyz" else status, said), "GET /readyz", "came 503"),
        (lambda path, asked, status, said: (500 if status == 422 else status, said), "refused: no JSON", "came 500"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_departure_is_named_with_what_came_and_what_was_expected(
    served: tuple[httpx.Client, Tampering], change: Change, failing: str, words: str
) -> None:
    failed = [one for one in check(served, change) if one.problem is not None]
    assert any(one.name.startswith(failing) and words in (one.problem or "") for one in failed), failed


def test_a_judge_that_takes_what_is_no_request_is_told_which(served: tuple[httpx.Client, Tampering]) -> None:
    wrong = (b'"colour": "blue"', b'"many-16"', b"a" * 401)

    def accept(path: str, asked: bytes, status: int, said: bytes) -> tuple[int, bytes]:
        return (200, b'{"verdicts": []}') if any(words in asked for words in wrong) else (status, said)

    failed = [one for one in check(served, accept) if one.problem is not None]
    assert [one.name for one in failed] == [
        "refused: an unknown key beside items",
        "refused: an unknown key in an item",
        "refused: more items than max_items=16",
        "refused: an item of more characters than max_chars=400",
    ]
    assert {one.problem for one in failed} == {'expected status 400, 413 or 422, came 200 {"verdicts": []}'}


def test_verdicts_may_come_in_any_order_and_be_unknown_with_a_reason(served: tuple[httpx.Client, Tampering]) -> None:
    def unsure(found: list[dict[str, Any]]) -> None:
        found.reverse()
        for one in found:
            if "helpful" in one:
                one |= {"helpful": "unknown", "error": "no idea"}

    found = check(served, verdicts(unsure))
    assert [one for one in found if one.problem is not None] == []
    assert "ok      helpful asked alone (helpful unknown: no idea)" in [one.line for one in found]


def test_a_judge_that_knows_nothing_fails(served: tuple[httpx.Client, Tampering]) -> None:
    def blank(one: dict[str, Any]) -> None:
        one.update({key: "unknown" for key in one if key not in ("id", "guard", "categories", "disagreed")})

    failed = {one.name for one in check(served, each(blank)) if one.problem is not None}
    assert failed == {"all fields at once: it can tell at least one", "after all this it still judges"}


def test_some_may_be_told_to_come_again_but_not_all(served: tuple[httpx.Client, Tampering]) -> None:
    def busy(*names: bytes) -> Change:
        return lambda path, asked, status, said: (503, b"") if any(map(asked.__contains__, names)) else (status, said)

    some = check(served, busy(b"request-0-", b"request-2-"))
    assert "ok      4 batches at once (2 told to come again)" in [one.line for one in some]
    everyone = check(served, busy(b'"request-'))
    assert [one.name for one in everyone if one.problem is not None] == ["4 batches at once"]


def test_a_judge_that_is_not_there_is_said_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge-check", "--protocol", "http://127.0.0.1:9"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "failed  GET /readyz says that it judges",
        "failed  GET /v1/guard says who judges, and its limits",
        "",
        "0 of 2 checks ok; see docs/judge_protocol.md",
    ]
    assert "ConnectError" in lines[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["file", "--protocol", "http://a"], "takes neither FILE nor --judge"),
        (["--protocol", "http://a", "--judge", "http://b"], "takes neither FILE nor --judge"),
        (["--protocol", "a"], "must start with one of: http://"),
        (["--protocol", "http://a", "--parallel", "0"], "--parallel 0 must be at least 1"),
        (["rows.jsonl", "--judge", "http://a", "--parallel", "0"], "--parallel 0 must be at least 1"),
        (["--protocol", "http://a", "--token-env", "NO_SUCH"], "NO_SUCH: this environment variable is unset"),
        (["--judge", "http://a"], "give FILE and --judge URL, or --protocol URL"),
        (["file"], "give FILE and --judge URL, or --protocol URL"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge-check", *words]) == 2
    assert message in capsys.readouterr().err
