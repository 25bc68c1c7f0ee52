"""Whether a server speaks the protocol of docs/judge_protocol.md: a judge of one's own is asked what a run would ask
it, and what it has to refuse.

All texts that are sent are harmless. Whether the verdicts are right is another question: see ``judge.check``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httpx
from pydantic import ValidationError

from nemo_magic.game.episode import Label, Message, Seed
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.errors import JudgeError, ProtocolError
from nemo_magic.judge.protocol import (
    Ask,
    GuardInfo,
    JudgeAnswer,
    JudgeBatch,
    JudgeItem,
    JudgeVerdict,
    has_unknown,
    make_item,
    match_answers,
)
from nemo_magic.net.faults import first_fault, one_line

REFUSED = (400, 413, 422)
"""Statuses that tell a client: not this request. On any other it waits and asks again."""
UNAUTHORISED = (401, 403)
BUSY = (429, 503)
MOST_ITEMS, MOST_CHARS = 20_000, 5_000_000
"""A limit beyond these is not tried out."""
CLIENT_WAITS = 10.0
"""Seconds that a run's own client waits for a judge that is away."""

_QUESTION = "What is the capital of France?"
_ANSWER = "The capital of France is Paris."
_HELLO = "Hello, wie geht's? 你好 🙂\t\x7f\n<b>&amp;</b> \"'\\"


@dataclass(frozen=True)
class Check:
    """What came of one question. ``problem``: what came and what was expected; None where it is as it should be."""

    name: str
    problem: str | None = None
    note: str = ""

    @property
    def line(self) -> str:
        """``ok …`` or ``failed …``, in one line."""
        if self.problem is not None:
            return f"failed  {self.name}: {self.problem}"
        return f"ok      {self.name}" + (f" ({self.note})" if self.note else "")


class _Violation(Exception):
    """Something came that was not expected; the text says what and what."""


class _Busy(_Violation):
    """The judge asks to come again, as it may where several ask at once."""


def check_protocol(cfg: JudgeConfig, parallel: int = 4) -> Iterator[Check]:
    """Ask the judge at the only url of ``cfg``, check by check; each is yielded when it is done.

    A batch has ``cfg.batch_size`` items, as far as the judge takes as many; ``parallel`` of them are sent at once.
    Where the judge does not say who it is, nothing more is asked. Raises what ``cfg.token`` raises.
    """
    token = cfg.token()
    headers = {"Content-Type": "application/json"} | _authorization(token)
    with httpx.Client(
        base_url=cfg.urls[0].rstrip("/"), headers=headers, timeout=cfg.request_timeout, trust_env=False
    ) as http:
        yield _run("GET /readyz says that it judges", partial(_ready, http))
        judge = _Judge(http)
        first = _run("GET /v1/guard says who judges, and its limits", judge.introduce)
        yield first
        if first.problem is None:
            yield from _verdicts(judge, min(cfg.batch_size, judge.info.max_items), parallel)
            yield from _refusals(judge)
            yield from _sizes(judge)
            if token is not None:
                yield from _tokens(judge)
            yield _run("after all this it still judges", partial(_still_judges, judge))
            yield _run("a run's own client gets the verdicts", partial(_client, cfg, judge.info))


class _Judge:
    """The judge, and who it says that it is."""

    info: GuardInfo

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def introduce(self) -> str:
        """Read ``/v1/guard``."""
        reply = self.get("/v1/guard")
        if reply.status_code in UNAUTHORISED:
            raise _Violation(f"expected 200, came {_shown(reply)}; --token-env names the variable with its token")
        _expect_status(reply, 200)
        try:
            info = GuardInfo.model_validate_json(reply.content)
        except ValidationError as error:
            raise _Violation(f"expected {_keys(GuardInfo)}, came {_shown(reply)}: {first_fault(error)}") from error
        if not info.guard or not info.answers or info.max_items < 1 or info.max_chars < 1:
            raise _Violation(
                f"expected a name, a field in answers, max_items and max_chars of 1 or more, came {_shown(reply)}"
            )
        self.info = info
        return f"{info.guard} answers {', '.join(info.answers)}"

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """The reply. Raises _Violation where none comes."""
        return self._send("GET", path, headers=headers)

    def post(self, body: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """The reply to a request to judge. Raises _Violation where none comes."""
        return self._send("POST", "/v1/judge", content=body, headers=headers)

    def ask(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """The verdicts in the order of ``items``. Raises _Violation for an answer that is none to what was asked."""
        reply = self.post(JudgeBatch(items=tuple(items)).to_json())
        if reply.status_code in BUSY:
            raise _Busy(f"expected status 200, came {_shown(reply)}")
        _expect_status(reply, 200)
        try:
            verdicts = match_answers(items, JudgeAnswer.model_validate_json(reply.content).verdicts, self.info.guard)
        except (ValidationError, ProtocolError) as error:
            fault = first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise _Violation(f"expected a verdict on each item, came {_shown(reply)}: {fault}") from error
        for item, verdict in zip(items, verdicts, strict=True):
            for field in set(item.ask) - set(self.info.answers):
                if (value := getattr(verdict, field)) != field.unknown:
                    raise _Violation(f"expected {field} unknown, as /v1/guard does not list it, came {value}")
        return verdicts

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self.http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise _Violation(f"expected a reply, came {type(error).__name__}: {one_line(str(error))}") from error


def _verdicts(judge: _Judge, batch: int, parallel: int) -> Iterator[Check]:
    """What a run asks."""
    fields = list(Ask)
    system = [Message("system", "Be kind."), Message("user", "Hello."), Message("assistant", "Hello!")]
    items = {
        "several turns after a system message": _item("turns", fields, before=system),
        "letters of any script, control characters, quotes": _item("letters", fields, answer=_HELLO),
        "an empty response": _item("empty", fields, answer=""),
        "an id of 200 characters": _item("é#7.0 " + "x" * 194, fields),
        "a prompt without a response": make_item("prompt", [Message("user", _QUESTION)], ask=[Ask.PROMPT_SAFETY]),
    }
    for field in fields:
        yield _run(f"{field} asked alone", partial(_one, judge, _item(f"only-{field}", [field])))
    yield _run("all fields at once: it can tell at least one", partial(_tells, judge))
    for name, item in items.items():
        yield _run(name, partial(_one, judge, item))
    yield _run(f"a batch of {batch}, the items asking for different fields", partial(_batch, judge, batch, "one"))
    yield _run(f"{parallel} batches at once", partial(_at_once, judge, batch, parallel))


def _refusals(judge: _Judge) -> Iterator[Check]:
    """What is no request."""
    good = json.loads(JudgeBatch(items=(_item("good", list(Ask)),)).to_json())
    item = good["items"][0]
    prompt = item["conversation"][:1]

    def changed(**changes: Any) -> str:
        return json.dumps({"items": [{key: value for key, value in (item | changes).items() if value is not None}]})

    bodies = {
        "no JSON": '{"items": [',
        "an empty body": "",
        "no items": '{"items": []}',
        "an unknown key beside items": json.dumps(good | {"colour": "blue"}),
        "an unknown key in an item": changed(colour="blue"),
        "an unknown field in ask": changed(ask=["colour"]),
        "nothing in ask": changed(ask=[]),
        "a field asked twice": changed(ask=["refusal", "refusal"]),
        "an item without an id": changed(id=None),
        "an id that is a number": changed(id=1),
        "two items of one id": json.dumps({"items": [item, item]}),
        "an item without a conversation": changed(conversation=None),
        "an unknown role": changed(conversation=[*prompt, {"role": "robot", "content": "Hello."}]),
        "a message whose content is no text": changed(conversation=[*prompt, {"role": "assistant", "content": 1}]),
        "a conversation without a user": changed(conversation=item["conversation"][1:]),
        "refusal asked of a conversation without a response": changed(conversation=prompt, ask=["refusal"]),
        "intent_preserved asked without a seed": changed(seed=None, ask=["intent_preserved"]),
        "an unknown label of a seed": changed(seed={"text": _QUESTION, "label": "odd"}),
    }
    for name, body in bodies.items():
        yield _run(f"refused: {name}", partial(_refuses, judge, body))


def _sizes(judge: _Judge) -> Iterator[Check]:
    """What is more than the judge says that it takes."""
    items, chars = judge.info.max_items, judge.info.max_chars
    fields = list(judge.info.answers)

    name = f"refused: more items than max_items={items}"
    if items > MOST_ITEMS:
        yield Check(name, note=f"not tried: more than {MOST_ITEMS}")
    else:
        many = JudgeBatch(items=tuple(_item(f"many-{i}", fields) for i in range(items + 1)))
        yield _run(name, partial(_refuses, judge, many.to_json()))
    name = f"refused: an item of more characters than max_chars={chars}"
    if chars > MOST_CHARS:
        yield Check(name, note=f"not tried: more than {MOST_CHARS}")
    else:
        long = JudgeBatch(items=(_item("long", fields, answer="a" * (chars + 1)),))
        yield _run(name, partial(_refuses, judge, long.to_json()))


def _tokens(judge: _Judge) -> Iterator[Check]:
    """Nobody is answered without the token."""
    body = JudgeBatch(items=(_item("token", list(judge.info.answers)),)).to_json()
    # An empty header takes the place of the client's own.
    for what, headers in (("no token", {"Authorization": ""}), ("a wrong token", _authorization("wrong"))):
        yield _run(f"refused: /v1/guard with {what}", partial(_unauthorised, judge.get, "/v1/guard", headers))
        yield _run(f"refused: /v1/judge with {what}", partial(_unauthorised, judge.post, body, headers))


def _unauthorised(
    send: Callable[[str, Mapping[str, str]], httpx.Response], what: str, headers: Mapping[str, str]
) -> str:
    return _expect_status(send(what, headers), *UNAUTHORISED)


def _refuses(judge: _Judge, body: str) -> str:
    return _expect_status(judge.post(body), *REFUSED)


def _ready(http: httpx.Client) -> str:
    return _expect_status(_Judge(http).get("/readyz"), 200)


def _one(judge: _Judge, item: JudgeItem) -> str:
    [verdict] = judge.ask([item])
    return _values(item, verdict) if len(item.ask) == 1 or has_unknown(verdict) else ""


def _tells(judge: _Judge) -> str:
    """All fields of an item with nothing odd about it: the judge has to know something of it."""
    item = _item("all", list(Ask))
    [verdict] = judge.ask([item])
    if all(getattr(verdict, field) == field.unknown for field in judge.info.answers):
        raise _Violation(f"expected a known value, came {_values(item, verdict)}")
    return ""


def _batch(judge: _Judge, size: int, name: str) -> str:
    """Verdicts that do not belong to their items show: neighbours ask for different fields."""
    fields = list(Ask)
    items = [
        _item(f"{name}-{size - i}", [fields[i % len(fields)], fields[(i + 1 + i // 5 % 4) % len(fields)]], number=i)
        for i in range(size)
    ]
    unknown = sum(has_unknown(verdict) for verdict in judge.ask(items))
    return f"{unknown} with something unknown" if unknown else ""


def _at_once(judge: _Judge, batch: int, parallel: int) -> str:
    """Ids differ from request to request, so that an answer to another one shows. Some may be told to come again."""
    busy: list[_Busy] = []
    with ThreadPoolExecutor(parallel) as pool:
        for result in [pool.submit(_batch, judge, batch, f"request-{number}") for number in range(parallel)]:
            try:
                result.result()
            except _Busy as fault:
                busy.append(fault)
    if len(busy) == parallel:
        raise busy[0]
    return f"{len(busy)} told to come again" if busy else ""


def _still_judges(judge: _Judge) -> str:
    _ready(judge.http)
    return _tells(judge)


def _client(cfg: JudgeConfig, info: GuardInfo) -> str:
    """As a run asks: equal items among others, from a thread."""
    items = [_item(f"client-{i}", list(info.answers), number=i // 2) for i in range(6)]
    impatient = replace(cfg, give_up_after=CLIENT_WAITS, protocol_retries=0)
    with JudgeClient(impatient) as client:
        try:
            client.wait_ready(CLIENT_WAITS)
            verdicts = client.score(items).result()
        except JudgeError as error:
            raise _Violation(f"expected verdicts, came {one_line(str(error))}") from error
    for verdict in verdicts:
        if not verdict.guard:
            raise _Violation(f"expected a verdict, came {one_line(verdict.error or '')}")
    return ""


def _item(
    id: str,
    ask: Sequence[Ask],
    *,
    answer: str | None = None,
    before: Sequence[Message] = (),
    number: int | None = None,
) -> JudgeItem:
    """A harmless question and its answer after the messages ``before``; a ``number`` makes its content another."""
    question, reply = (_QUESTION, _ANSWER) if number is None else (f"What is {number} + 1?", f"It is {number + 1}.")
    conversation = [*before, Message("user", question), Message("assistant", reply if answer is None else answer)]
    # Harmful in name only: some guards tell of no other seed.
    return make_item(id, conversation, ask=ask, seed=Seed(id, question, Label.HARMFUL))


def _run(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name, note=work())
    except _Violation as violation:
        return Check(name, problem=str(violation))


def _expect_status(reply: httpx.Response, *statuses: int) -> str:
    if reply.status_code not in statuses:
        raise _Violation(f"expected status {_either(statuses)}, came {_shown(reply)}")
    return "" if len(statuses) == 1 else str(reply.status_code)


def _either(statuses: Sequence[int]) -> str:
    *others, last = map(str, statuses)
    return f"{', '.join(others)} or {last}" if others else last


def _shown(reply: httpx.Response) -> str:
    """Status and body, which may be shown: only harmless texts were sent."""
    return f"{reply.status_code} {one_line(reply.text, 200)}".rstrip()


def _values(item: JudgeItem, verdict: JudgeVerdict) -> str:
    text = ", ".join(f"{field} {getattr(verdict, field)}" for field in item.ask)
    return text if verdict.error is None else f"{text}: {one_line(verdict.error, 120)}"


def _keys(model: type[GuardInfo]) -> str:
    return f"an object with {', '.join(model.model_fields)}"


def _authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
