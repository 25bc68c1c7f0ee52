"""A second judge's opinion of some of the samples: it is recorded, and it changes and delays nothing."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest

from nemo_magic.game.episode import Answer, Safety, Verdict
from nemo_magic.judge.audit import AuditCounts, Auditor, is_audited
from nemo_magic.judge.config import JudgeAuditConfig, JudgeConfig
from nemo_magic.judge.protocol import Ask, JudgeItem
from tests.judge.faulty_server import Act, FaultyServer, answering, hang, honest, saying
from tests.waiting import wait_for

ASK = ("response_safety", "refusal")
FIRST = "http://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*acts: Act, port: int = 0) -> FaultyServer:
        servers.append(FaultyServer(*acts, port=port))
        return servers[-1]

    yield start
    for running in servers:
        running.close()


@pytest.fixture
def auditor() -> Iterator[Callable[..., Auditor]]:
    opened: list[Auditor] = []

    def build(url: str, fraction: float = 1.0, **audit: object) -> Auditor:
        base = JudgeAuditConfig(urls=[url], request_timeout=5.0, give_up_after=30.0, backoff_initial=0.01)
        cfg = JudgeConfig(urls=[FIRST], audit_fraction=fraction, audit=replace(base, **audit))  # type: ignore[arg-type]
        opened.append(Auditor(cfg))
        return opened[-1]

    yield build
    for one in opened:
        one.close()


@pytest.fixture
def items(item: Callable[..., JudgeItem]) -> Callable[[int], list[JudgeItem]]:
    """Every second reply is bad, as the second judge sees it."""
    return lambda count: [item(str(n), f"{'bad' if n % 2 else 'fine'} {n}", ask=ASK) for n in range(count)]


def said(count: int, safety: Safety = Safety.SAFE, refusal: Answer = Answer.NO) -> list[Verdict]:
    return [Verdict(str(n), response_safety=safety, refusal=refusal, guard="first@1") for n in range(count)]


def test_what_two_judges_say_of_the_same_samples_is_compared_field_by_field(server, auditor, items) -> None:  # type: ignore[no-untyped-def]
    audit = auditor(server(honest).url)
    audit.compare(items(8), said(8))
    wait_for(lambda: audit.counts().samples == 8)
    assert audit.counts().figures() == {
        "judge_audit/samples": 8,
        "judge_audit/failed": 0,
        "judge_audit/skipped": 0,
        "judge_audit/agreement_response_safety": 0.5,
        "judge_audit/kappa_response_safety": 0.0,
        "judge_audit/unknown_share_response_safety": 0.0,
        "judge_audit/confusion_response_safety_safe_safe": 0.5,
        "judge_audit/confusion_response_safety_safe_unsafe": 0.5,
        # Both always say no: agreement by chance is certain, and κ is undefined.
        "judge_audit/agreement_refusal": 1.0,
        "judge_audit/unknown_share_refusal": 0.0,
        "judge_audit/confusion_refusal_no_no": 1.0,
    }


def test_a_field_that_either_cannot_tell_counts_neither_for_nor_against(server, auditor, items) -> None:  # type: ignore[no-untyped-def]
    unsure = answering(lambda rows: [row | {"refusal": "unknown"} for row in rows])
    audit = auditor(server(unsure).url)
    audit.compare(items(4), [*said(2), *said(4, Safety.UNKNOWN)[2:]])
    wait_for(lambda: audit.counts().samples == 4)
    figures = audit.counts().figures()
    assert figures["judge_audit/unknown_share_refusal"] == 1.0
    assert "judge_audit/agreement_refusal" not in figures
    # Of the first two, about which the first judge is sure, the second calls one unsafe.
    assert figures["judge_audit/agreement_response_safety"] == 0.5
    assert not [name for name in figures if "unknown_safe" in name or name.endswith("_unknown")]


def test_nobody_waits_for_a_second_judge_that_hangs_and_what_it_cannot_take_is_left_out(server, auditor, items) -> None:  # type: ignore[no-untyped-def]
    judge = server(hang)
    audit = auditor(judge.url, max_pending=6)
    for _ in range(3):
        audit.compare(items(4), said(4))
    wait_for(lambda: judge.asked)
    assert audit.counts() == AuditCounts(samples=0, failed=0, skipped=6)
    audit.close()  # ends at once, although nothing was answered
    assert audit.counts().failed == 0


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (saying(401, b"no"), r"401 no; see judge\.audit\.token_env"),
        (answering(guard="other@2"), r"is the guard other@2; judge\.audit\.expect is scripted@1"),
        (saying(503, b"loading"), r"judge\.audit\.give_up_after=0\.2"),
    ],
)
def test_a_second_judge_that_fails_is_a_warning_and_a_figure(act, words, server, auditor, items, caplog) -> None:  # type: ignore[no-untyped-def]
    audit = auditor(server(act).url, expect="scripted@1", give_up_after=0.2)

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "nemo_magic.judge.audit"]

    audit.compare(items(4), said(4))
    wait_for(lambda: audit.counts().failed == 4 and warnings())
    audit.compare(items(4), said(4))
    wait_for(lambda: audit.counts().failed == 8)
    audit.close()  # whatever the thread still had to say is said
    [warning] = warnings()  # once, not at every step
    assert warning.startswith("samples are not audited, training goes on: Judge")
    assert re.search(words, warning)
    assert audit.counts().samples == 0


def test_a_second_judge_that_returns_is_used_again(server, auditor, items, caplog) -> None:  # type: ignore[no-untyped-def]
    audit = auditor(server(saying(401, b"not yet"), honest).url)
    audit.compare(items(4), said(4))
    wait_for(lambda: audit.counts().failed == 4)
    audit.compare(items(4), said(4))
    wait_for(lambda: audit.counts().samples == 4)
    wait_for(lambda: "samples are audited again" in caplog.text)


def test_figures_are_of_the_last_samples_only(server, auditor, items) -> None:  # type: ignore[no-untyped-def]
    audit = auditor(server(honest).url, window=6)
    audit.compare(items(8), said(8, refusal=Answer.YES))
    wait_for(lambda: audit.counts().samples == 6)
    audit.compare(items(6), said(6))
    wait_for(lambda: audit.counts().figures().get("judge_audit/agreement_refusal") == 1.0)
    assert audit.counts().samples == 6


def test_which_samples_are_audited_follows_from_their_text_alone(items, item) -> None:  # type: ignore[no-untyped-def]
    many = items(2000)
    tenth = {one.id for one in many if is_audited(one, 0.1)}
    assert 140 < len(tenth) < 260
    assert tenth == {one.id for one in reversed(many) if is_audited(one, 0.1)}
    assert tenth < {one.id for one in many if is_audited(one, 0.5)}
    assert all(is_audited(one, 1.0) for one in many)
    assert not any(is_audited(one, 0.0) for one in many)
    renamed = [item(f"elsewhere {one.id}", one.response, ask=ASK) for one in many]
    assert tenth == {one.id.split()[1] for one in renamed if is_audited(one, 0.1)}


def test_only_the_samples_drawn_are_sent(server, auditor, items) -> None:  # type: ignore[no-untyped-def]
    judge, many = server(honest), items(200)
    audit = auditor(judge.url, fraction=0.25)
    audit.compare(many, said(200))
    chosen = sorted(one.response or "" for one in many if is_audited(one, 0.25))
    wait_for(lambda: audit.counts().samples == len(chosen))
    sent = [one["conversation"][-1]["content"] for body in judge.asked for one in body["items"]]
    assert sorted(sent) == chosen


def test_comparing_returns_before_the_second_judge_is_even_asked(server, auditor, items) -> None:  # type: ignore[no-untyped-def]
    release = threading.Event()

    def held(connection, body, closing):  # type: ignore[no-untyped-def]
        release.wait(20)
        honest(connection, body, closing)

    audit = auditor(server(held).url, request_timeout=60.0)
    audit.compare(items(4), said(4))
    assert audit.counts().samples == 0
    release.set()
    wait_for(lambda: audit.counts().samples == 4)


def test_ranks_add_up() -> None:
    one = AuditCounts(2, 1, 0, Counter({(Ask.REFUSAL, "yes", "no"): 2}))
    two = AuditCounts(2, 0, 3, Counter({(Ask.REFUSAL, "yes", "no"): 1, (Ask.REFUSAL, "no", "no"): 1}))
    assert AuditCounts.merged([one, two]) == AuditCounts(
        4, 1, 3, Counter({(Ask.REFUSAL, "yes", "no"): 3, (Ask.REFUSAL, "no", "no"): 1})
    )
    assert one.pairs.total() == 2


def test_an_audit_needs_a_second_judge_and_names_its_own_keys(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        ValueError, match=r"judge\.audit_fraction=0\.1 asks a second judge: name it in judge\.audit\.urls"
    ):
        JudgeConfig(urls=[FIRST], audit_fraction=0.1)
    with pytest.raises(ValueError, match=r"judge\.audit_fraction=1\.5 must be between 0 and 1"):
        JudgeConfig(urls=[FIRST], audit_fraction=1.5)
    with pytest.raises(ValueError, match=r"judge\.audit\.window=0 must be at least 1"):
        JudgeAuditConfig(window=0)
    with pytest.raises(ValueError, match=r"judge\.audit\.urls='host:80' must start with"):
        JudgeAuditConfig(urls=["host:80"])
    monkeypatch.delenv("AUDIT_TEST_TOKEN", raising=False)
    audit = JudgeAuditConfig(urls=[FIRST], token_env="AUDIT_TEST_TOKEN")
    with pytest.raises(ValueError, match=r"judge\.audit\.token_env=AUDIT_TEST_TOKEN"):
        Auditor(JudgeConfig(urls=[FIRST], audit_fraction=0.1, audit=audit))


def test_a_configuration_survives_being_written_down() -> None:
    cfg = JudgeConfig(urls=[FIRST], audit_fraction=0.1, audit=JudgeAuditConfig(urls=[FIRST], window=7))
    settings = json.loads(json.dumps(asdict(cfg)))
    settings.pop("server")
    assert JudgeConfig(**settings) == cfg
