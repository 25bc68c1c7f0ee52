"""Reads red-teaming tools' files as examples: the attacks, and the answers to them.

Tested with garak 0.10.3, 0.13.3, 0.14.0 and 0.17.1, PyRIT 0.9.0, 0.14.0 and 1.1.0, OpenRT 0.0.2, and the artifacts of
JailbreakBench 1.0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemo_magic.data.cells import name_of, parsed, text_of
from nemo_magic.data.errors import DataError
from nemo_magic.data.streams import RowStream
from nemo_magic.data.tables import DropReport, RowNames
from nemo_magic.evaluation.example import Example
from nemo_magic.game.episode import Label

Row = Mapping[str, Any]
Columns = Mapping[str, str]
Utterance = tuple[str, str | None]
"""Role (system, user or assistant) and text; None where the message is no text."""

Reader = Callable[[Columns, Iterable[Row], DropReport, list[str]], Iterator[Example]]
"""(field → column, rows, report of dropped rows, notes) → one example for every answer, and for every attack without
any."""


def deduplicate_attacks(examples: Iterable[Example], report: DropReport) -> list[Example]:
    """Every attack of one behaviour once, whoever answered it how often."""
    kept: dict[tuple[str, tuple[str, ...]], Example] = {}
    for example in examples:
        if (example.group, example.turns) in kept:
            report.drop("another answer to the same attack")
        else:
            kept[example.group, example.turns] = example
    return list(kept.values())


def keep_answered(examples: Iterable[Example], report: DropReport) -> list[Example]:
    """Examples of which every turn was answered."""
    kept = []
    for example in examples:
        if example.replies:
            kept.append(example)
        else:
            report.drop("no answer to judge")
    return kept


def read_garak(columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]) -> Iterator[Example]:
    """Attempts of a report, or hits of a hit log. garak writes an attempt once when it is answered and again when it is
    scored, and a hit once for every detector that it hit."""
    keys: set[object] = set()
    names, name_by_id = RowNames(), dict[object, str]()
    systems = 0
    for number, row in enumerate(rows):
        if row.get("entry_type", "attempt") != "attempt":
            report.drop("an entry that is no attempt")
            continue
        # A row without an id is known by its place, which is no id: another row may have that number for one.
        own = name_of(row.get("uuid") or row.get("attempt_id"))
        index = name_of(row.get("attempt_idx"))
        key = (own, index) if own else number
        if key in keys:
            report.drop("an attempt that came before")
            continue
        keys.add(key)
        if (attempt_id := name_by_id.get(own or number)) is None:
            attempt_id = name_by_id[own or number] = names.of(own or str(number), str(number), report)
        conversations = _garak_conversations(row, columns["text"])
        if not conversations:
            report.drop("an attempt without a prompt that is text")
            continue
        report.read += len(conversations) - 1
        for output, utterances in enumerate(conversations):
            systems += any(role == "system" for role, _ in utterances)
            example = _to_example(
                f"{attempt_id}/{index or output}",
                utterances,
                report,
                method=name_of(row.get(columns["method"])),
                category=name_of(row.get("intent")),
                behaviour=attempt_id,
            )
            if example is not None:
                yield example
    _note_system_prompts(systems, notes)


def read_pyrit(columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]) -> Iterator[Example]:
    """Conversations of message pieces, as ``export_conversations`` wrote them and ``MessagePiece.model_dump`` gives
    them."""
    conversations: dict[str, list[Row]] = {}
    pieces = 0
    for row in rows:
        conversation_id = name_of(row.get(columns["behaviour"]))
        if not conversation_id:
            report.drop("a piece without a conversation_id")
            continue
        pieces += 1
        conversations.setdefault(conversation_id, []).append(row)
    # From here on conversations are counted.
    report.read += len(conversations) - pieces
    systems = 0
    for conversation_id, unordered in conversations.items():
        try:
            ordered = sorted(unordered, key=lambda row: float(name_of(row.get(columns["place"]))))
        except ValueError:
            report.drop("a conversation with a sequence that is no number")
            continue
        utterances = [_pyrit_utterance(row, columns) for row in ordered]
        systems += any(role == "system" for role, _ in utterances)
        method = _pyrit_method(ordered, columns)
        example = _to_example(conversation_id, utterances, report, method=method, behaviour=conversation_id)
        if example is not None:
            yield example
    _note_system_prompts(systems, notes)


def read_openrt(columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]) -> Iterator[Example]:
    """Attack results. Of methods that talk for several turns the final prompt alone is read: what they keep of the
    others differs from method to method."""
    for number, row in enumerate(rows):
        target = row.get(columns["request"])
        fields = target if isinstance(target, Mapping) else {"prompt": target}
        if "image" in columns and name_of(row.get(columns["image"])):
            report.drop("an attack that shows an image")
            continue
        request = text_of(fields.get("prompt"))
        if request is None:
            report.drop("request is no text")
            continue
        method = name_of(row.get(columns["method"])) if "method" in columns else ""
        # A method that gave up has no prompt, and an answer that it never had is empty.
        utterances = [
            ("user", text_of(row.get(columns["text"]))),
            ("assistant", text_of(row.get(columns["answer"])) or None),
        ]
        example = _to_example(
            str(number),
            utterances,
            report,
            request=request,
            method=method or name_of(fields.get("method")),
            behaviour=request,
        )
        if example is not None:
            yield example


def read_jailbreakbench(
    columns: Columns, rows: Iterable[Row], report: DropReport, notes: list[str]
) -> Iterator[Example]:
    """The jailbreaks of an artifact, one a behaviour: the prompt, and what the attacked model answered."""
    without = total = 0
    for row in rows:
        total += 1
        behaviour, prompt = name_of(row.get(columns["behaviour"])), row.get(columns["text"])
        if not name_of(prompt):
            without += 1
            report.drop("a behaviour without a prompt")
            continue
        example = _to_example(
            behaviour,
            [("user", text_of(prompt)), ("assistant", text_of(row.get(columns["answer"])))],
            report,
            request=text_of(row.get(columns["request"])) or "",
            category=name_of(row.get(columns["category"])),
            method=name_of(row.get(columns["method"])) if "method" in columns else "",
            behaviour=behaviour,
        )
        if example is not None:
            yield example
    if without:
        notes.append(
            f"{without} of {total} behaviours have no prompt: JailbreakBench counts them as not jailbroken, and here "
            "they are left out"
        )


def jailbreaks_of(stream: RowStream, report: DropReport) -> RowStream:
    """An artifact's jailbreaks as rows, each with the method of its ``parameters``; any other file as it is.

    Raises:
        DataError: the file is one JSON object without ``jailbreaks``.
    """
    if stream.document is None:
        return stream
    jailbreaks, parameters = stream.document.get("jailbreaks"), stream.document.get("parameters")
    if not isinstance(jailbreaks, list) or not all(isinstance(row, Mapping) for row in jailbreaks):
        raise DataError(f"{stream.path} is no artifact of JailbreakBench: it has no list of jailbreaks")
    method = name_of(parameters.get("method")) if isinstance(parameters, Mapping) else ""
    report.read += len(jailbreaks)
    rows = [{"method": method, **row} for row in jailbreaks]
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return RowStream(stream.path, stream.format, columns, iter(rows))


READERS: dict[str, Reader] = {
    "garak": read_garak,
    "jailbreakbench_artifacts": read_jailbreakbench,
    "openrt": read_openrt,
    "pyrit": read_pyrit,
}
"""By ``Benchmark.reader``."""


def _to_example(example_id: str, utterances: Sequence[Utterance], report: DropReport, **fields: str) -> Example | None:
    """The conversation as an example; None, and reported, where a user's message cannot be repeated.

    Successive messages of one role are one message. An answer that is missing, empty or no text leaves the whole
    without answers.
    """
    exchanges: list[tuple[str, list[str]]] = []
    unanswered = False
    answering = False
    for role, text in utterances:
        if role == "user":
            if not text:
                report.drop("a user's message that is empty or no text")
                return None
            if exchanges and not answering:
                exchanges[-1] = (f"{exchanges[-1][0]}\n{text}", [])
            else:
                exchanges.append((text, []))
            answering = False
        elif role == "assistant" and exchanges:
            answering = True
            if text is None or not text.strip():
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
        example_id,
        tuple(text for text, _ in exchanges),
        Label.HARMFUL,
        adversarial=None,
        replies=tuple("\n".join(replies) for _, replies in exchanges) if complete else (),
        **fields,
    )


def _note_system_prompts(count: int, notes: list[str]) -> None:
    if count:
        notes.append(f"system prompts left out, as they were the other model's: {count}")


def _garak_conversations(row: Row, prompt_column: str) -> list[list[Utterance]]:
    """One a generation: of ``conversations`` (since 0.13), ``messages`` (before), or the prompt and its outputs. None
    where the attempt has no prompt of any form; one of several that cannot be read is empty."""
    if any(conversations := [_garak_turns(one) for one in _list(row.get("conversations"))]):
        return conversations
    messages = _list(row.get("messages"))
    # Without any output the old format has one list of messages and not a list of lists.
    if messages and isinstance(messages[0], Mapping):
        messages = [messages]
    if any(conversations := [_garak_turns({"turns": one}) for one in messages]):
        return conversations
    prompt = row.get(prompt_column)
    prompts = _garak_turns(prompt) or ([("user", text)] if (text := _garak_text(prompt)) else [])
    outputs = _list(row.get("outputs")) or [row.get("output")]
    return [[*prompts, ("assistant", _garak_text(output))] for output in outputs] if prompts else []


def _garak_turns(conversation: object) -> list[Utterance]:
    """The messages of a conversation; none where it is none."""
    turns = _list(conversation.get("turns")) if isinstance(conversation, Mapping) else []
    if not all(isinstance(turn, Mapping) for turn in turns):
        return []
    return [(name_of(turn.get("role")), _garak_text(turn.get("content"))) for turn in turns]


def _garak_text(content: object) -> str | None:
    """A message is a text, or an object that has one; None where the model gave none, or an attachment came with it."""
    if isinstance(content, Mapping) and content.get("data_path"):
        return None
    return None if content is None else text_of(content)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


_PYRIT_ROLES = {"simulated_assistant": "assistant", "developer": "system"}


def _pyrit_utterance(row: Row, columns: Columns) -> Utterance:
    role = name_of(row.get(columns["role"]))
    kind = name_of(row.get(columns["kind"])) if "kind" in columns else ""
    failure = name_of(row.get(columns["failure"])) if "failure" in columns else ""
    is_text = kind in ("", "text") and failure in ("", "none")
    return _PYRIT_ROLES.get(role, role), text_of(row.get(columns["text"])) if is_text else None


def _pyrit_method(pieces: Sequence[Row], columns: Columns) -> str:
    """Attack and converters by their classes, where the file names them."""
    names: list[str] = []
    for row in pieces:
        for field in ("attack", "converters"):
            value = parsed(row.get(columns[field])) if field in columns else None
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Mapping):
                    names.append(name_of(one.get("__type__") or one.get("class_name")))
    return "+".join(dict.fromkeys(name for name in names if name))
