"""What red-teaming tools left, as cases: their attacks, and the answers that they were given.

Held to garak 0.10.3, 0.13.3, 0.14.0 and 0.17.1, PyRIT 0.9.0, 0.14.0 and 1.1.0, and OpenRT 0.0.2.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemo_magic.data.tables import DropReport, text_of
from nemo_magic.evaluation.example import Example
from nemo_magic.game.episode import Label

Row = Mapping[str, Any]
Columns = Mapping[str, str]
Spoken = tuple[str, str | None]
"""Who spoke (system, user or assistant) and what; None where it is no text."""

Reader = Callable[[Columns, Iterable[Row], DropReport, list[str]], Iterator[Example]]
"""(field → column, rows, what is left out, what else is to be said of the file) → one case for every answer, and for
every attack without any."""


def each_attack_once(cases: Iterable[Example], report: DropReport) -> list[Example]:
    """Every attack of one behaviour once, whoever answered it how often."""
    kept: dict[tuple[str, tuple[str, ...]], Example] = {}
    for case in cases:
        if (case.group, case.turns) in kept:
            report.drop("another answer to the same attack")
        else:
            kept[case.group, case.turns] = case
    return list(kept.values())


def those_with_answers(cases: Iterable[Example], report: DropReport) -> list[Example]:
    """Cases of which every turn was answered."""
    kept = []
    for case in cases:
        if case.replies:
            kept.append(case)
        else:
            report.drop("no answer to judge")
    return kept


def read_garak(columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]) -> Iterator[Example]:
    """Attempts of a report, or hits of a hit log. An attempt is written down once it is answered and again once it is
    scored; a hit once for every detector that it hit."""
    seen: set[object] = set()
    systems = 0
    for number, row in enumerate(rows):
        if row.get("entry_type", "attempt") != "attempt":
            report.drop("an entry that is no attempt")
            continue
        own = text_of(row.get("uuid") or row.get("attempt_id")) or str(number)
        key = (own, row.get("attempt_idx"))
        if key in seen:
            report.drop("an attempt that came before")
            continue
        seen.add(key)
        conversations = _garak_conversations(row, columns["text"])
        report.read += max(0, len(conversations) - 1)
        index = row.get("attempt_idx")
        for place, spoken in enumerate(conversations):
            systems += any(role == "system" for role, _ in spoken)
            case = _case(
                f"{own}/{index if index is not None else place}",
                spoken,
                report,
                method=text_of(row.get(columns["method"])),
                category=text_of(row.get("intent")),
                behaviour=own,
            )
            if case is not None:
                yield case
    _tell_systems(systems, notes)


def read_pyrit(columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]) -> Iterator[Example]:
    """Conversations of message pieces, as ``export_conversations`` wrote them and ``MessagePiece.model_dump`` gives
    them."""
    conversations: dict[str, list[Row]] = {}
    pieces = 0
    for row in rows:
        own = text_of(row.get(columns["behaviour"]))
        if not own:
            report.drop("a piece without a conversation_id")
            continue
        pieces += 1
        conversations.setdefault(own, []).append(row)
    # From here on conversations are counted.
    report.read += len(conversations) - pieces
    systems = 0
    for own, of in conversations.items():
        try:
            ordered = sorted(of, key=lambda row: float(text_of(row.get(columns["place"]))))
        except ValueError:
            report.drop("a conversation with a sequence that is no number")
            continue
        spoken = [_pyrit_spoken(row, columns) for row in ordered]
        systems += any(role == "system" for role, _ in spoken)
        case = _case(own, spoken, report, method=_pyrit_method(ordered, columns), behaviour=own)
        if case is not None:
            yield case
    _tell_systems(systems, notes)


def read_openrt(columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]) -> Iterator[Example]:
    """Attack results. Of methods that talk for several turns the final prompt alone is read: what they keep of the
    others differs from method to method."""
    for number, row in enumerate(rows):
        target = row.get(columns["request"])
        fields = target if isinstance(target, Mapping) else {"prompt": target}
        if "image" in columns and text_of(row.get(columns["image"])):
            report.drop("an attack that shows an image")
            continue
        answer = row.get(columns["answer"])
        request = text_of(fields.get("prompt"))
        method = text_of(row.get(columns["method"])) if "method" in columns else ""
        # A method that gave up has no prompt, and an answer that it never had is empty.
        spoken = [("user", text_of(row.get(columns["text"]))), ("assistant", text_of(answer) or None)]
        case = _case(
            str(number),
            spoken,
            report,
            request=request,
            method=method or text_of(fields.get("method")),
            behaviour=request,
        )
        if case is not None:
            yield case


READERS: dict[str, Reader] = {"garak": read_garak, "pyrit": read_pyrit, "openrt": read_openrt}
"""By ``Benchmark.reader``."""


def _case(id: str, spoken: Sequence[Spoken], report: DropReport, **known: str) -> Example | None:
    """The conversation as a case; None, and counted, where its user says nothing that can be said again.

    What one party says in several messages is one message. An answer that is missing or no text leaves the whole
    without answers.
    """
    exchanges: list[tuple[str, list[str]]] = []
    unanswered = False
    begun = False
    for role, text in spoken:
        if role == "user":
            if not text:
                report.drop("a user's message that is empty or no text")
                return None
            if exchanges and not begun:
                exchanges[-1] = (f"{exchanges[-1][0]}\n{text}", [])
            else:
                exchanges.append((text, []))
            begun = False
        elif role == "assistant" and exchanges:
            begun = True
            if text is None:
                unanswered = True
            else:
                exchanges[-1][1].append(text)
        elif role not in ("assistant", "system"):
            report.drop(f"a message of {role[:20]!r}")
            return None
    if not exchanges:
        report.drop("no user's message")
        return None
    complete = not unanswered and all(replies for _, replies in exchanges)
    return Example(
        id,
        tuple(text for text, _ in exchanges),
        Label.HARMFUL,
        adversarial=None,
        replies=tuple("\n".join(replies) for _, replies in exchanges) if complete else (),
        **known,
    )


def _tell_systems(count: int, notes: list[str]) -> None:
    if count:
        notes.append(f"system prompts left out, as they were the other model's: {count}")


def _garak_conversations(row: Row, prompt_column: str) -> list[list[Spoken]]:
    """One a generation: of ``conversations`` (since 0.13), ``messages`` (before), or the prompt and its outputs."""
    turns = [conversation["turns"] for conversation in row.get("conversations") or () if conversation.get("turns")]
    messages = row.get("messages") or []
    # Without any output the old format has one list of messages and not a list of lists.
    turns = turns or ([messages] if messages and isinstance(messages[0], Mapping) else messages)
    if turns:
        return [[_garak_spoken(turn) for turn in each] for each in turns]
    prompt = row.get(prompt_column)
    asked = (
        prompt["turns"] if isinstance(prompt, Mapping) and "turns" in prompt else [{"role": "user", "content": prompt}]
    )
    begun = [_garak_spoken(turn) for turn in asked]
    outputs = row["outputs"] if row.get("outputs") else [row.get("output")]
    return [[*begun, ("assistant", _garak_text(output))] for output in outputs]


def _garak_spoken(turn: Row) -> Spoken:
    return str(turn.get("role")), _garak_text(turn.get("content"))


def _garak_text(content: object) -> str | None:
    """A message is a text, or an object that has one; None where the model gave none, or an attachment came with it."""
    if isinstance(content, Mapping):
        return None if content.get("data_path") else content.get("text")
    return content if isinstance(content, str) else None


_PYRIT_ROLES = {"simulated_assistant": "assistant", "developer": "system"}


def _pyrit_spoken(row: Row, columns: Columns) -> Spoken:
    role = text_of(row.get(columns["role"]))
    kind = text_of(row.get(columns["kind"])) if "kind" in columns else ""
    failure = text_of(row.get(columns["failure"])) if "failure" in columns else ""
    is_text = kind in ("", "text") and failure in ("", "none")
    return _PYRIT_ROLES.get(role, role), text_of(row.get(columns["text"])) if is_text else None


def _pyrit_method(pieces: Sequence[Row], columns: Columns) -> str:
    """Attack and converters by their classes, as far as they are told."""
    found: list[str] = []
    for row in pieces:
        for field in ("attack", "converters"):
            value = _value(row.get(columns[field])) if field in columns else None
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Mapping):
                    found.append(text_of(one.get("__type__") or one.get("class_name")))
    return "+".join(dict.fromkeys(name for name in found if name))


def _value(cell: object) -> object:
    """A cell of a csv file as the object that it was written from."""
    if not isinstance(cell, str):
        return cell
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell
