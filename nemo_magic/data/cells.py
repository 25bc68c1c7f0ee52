"""What a cell of a user's file says: a text, a chat, or a name. Nothing else reads a cell as one of these."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from nemo_magic.game.episode import Message

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LONGEST_LITERAL = 1 << 18
"""Characters of a cell that is read as a Python literal: the parser takes a hundred times as much memory."""


_LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")


def text_of(value: Any) -> str | None:
    """The text that a cell holds, stripped; empty where the cell is, and None where it holds something else.

    A chat says what its last user message says; a list of content parts, what its parts say, one a line. Bytes are
    UTF-8, and a number is its digits. A cell of csv can hold neither lists nor objects, so its text may be a chat or
    parts written down. None are flags, dates, other lists and objects, parts that are no text, and what is no Unicode:
    Python has a spelling for each of them, which nobody meant.
    """
    value = _unpacked(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return _scalar(value)
    if not _is_chat(value):
        return _content(value)
    user_texts = [message.get("content") for message in value if message["role"] == "user"]
    return _content(user_texts[-1]) if user_texts else None


def chat_of(value: Any) -> tuple[Message, ...] | None:
    """The messages of a chat, a list or that list written down. None where a cell holds none, or one of its messages
    is no text, or of somebody who is no system, user or assistant."""
    value = _unpacked(value)
    if not _is_chat(value):
        return None
    chat = []
    for message in value:
        role, content = _ROLES.get(message["role"]), message.get("content")
        text = None if content is None else _content(content)
        if role is None or text is None:
            return None
        chat.append(Message(role, text))
    return tuple(chat)


def is_longer_chat(value: Any) -> bool:
    """Whether a cell is a chat of several messages, of which ``text_of`` reads one."""
    value = _unpacked(value)
    return _is_chat(value) and len(value) > 1


def name_of(value: Any) -> str:
    """A label, an id, a category: a word for people and for comparing, never a text to be played. Empty where the cell
    is; lists of words have commas between, and other lists and objects are JSON."""
    text = value.decode(errors="replace").strip() if isinstance(value, bytes) else _scalar(value)
    if text is not None:
        return text
    if isinstance(value, list) and all(isinstance(one, str) and is_unicode(one) for one in value):
        return ", ".join(value)
    try:
        return json.dumps(value, ensure_ascii=not is_unicode(value), default=str)
    except (ValueError, TypeError, RecursionError):
        return f"({type(value).__name__})"


def parsed(cell: Any) -> Any:
    """What a cell's text is the JSON or the Python literal of; the cell itself where it is neither, or is no text."""
    if not isinstance(cell, str):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        if len(cell) > _LONGEST_LITERAL:
            return cell
        try:
            with warnings.catch_warnings():
                # It warns of odd escapes, as if they stood in the program.
                warnings.simplefilter("ignore")
                value = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return cell
    return value if is_unicode(value) else cell


def is_unicode(value: Any) -> bool:
    """Whether a value of JSON can be written as UTF-8: half of a surrogate pair cannot. False where it is nested too
    deeply to tell."""
    try:
        if isinstance(value, str):
            value.encode()
        else:
            json.dumps(value, ensure_ascii=False, default=str).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    except (ValueError, TypeError):
        pass  # no JSON: a literal with keys of other types
    return True


def _unpacked(value: Any) -> Any:
    """The chat or the parts that a text is the spelling of; any other value as it is."""
    if not isinstance(value, str) or not _LIST_OF_OBJECTS.match(value):
        return value
    inner = parsed(value)
    return inner if _is_chat(inner) or _are_parts(inner) else value


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in value)
    )


def _are_parts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and isinstance(one.get("type"), str) for one in value)
    )


def _content(value: Any) -> str | None:
    """The text of a message's content: a text, or a list of parts that are all texts."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return _scalar(value)
    texts = []
    for part in value:
        # Several bare texts may be messages, choices or lines; only one is surely the text.
        text = _part(part) if isinstance(part, Mapping) else part if len(value) == 1 else None
        if not isinstance(text, str) or not is_unicode(text):
            return None
        texts.append(text.strip())
    return "\n".join(text for text in texts if text)


def _part(part: Mapping[Any, Any]) -> Any:
    """The text of a content part; None of an image."""
    if part.get("type", "text") not in ("text", "input_text", "output_text"):
        return None
    return part.get("text", part.get("content"))


def _scalar(value: Any) -> str | None:
    if value is None or value != value:  # NaN is the one value unequal to itself
        return ""
    if isinstance(value, str):
        return value.strip() if is_unicode(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None
