"""Texts to ids and back, with the offset of every token in its text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from nemo_magic.actors.tokenizer import ChatTokenizer

_UNFINISHED = "�"
_PENDING = 7
"""Tokens without a finished character after which the first of them are taken as they are: a character has 4 bytes."""


@dataclass(frozen=True)
class Tokens:
    """Ids, the text each of them stands for, where that begins, and the whole text."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    offsets: tuple[int, ...]
    text: str


class TextStream:
    """The text of ids that come one after the other, in whole characters; the time for each does not depend on how many
    came before. ``special``: special tokens are shown."""

    def __init__(self, chat: ChatTokenizer, special: bool = False) -> None:
        self._chat, self._special = chat, special
        # A decoder treats a text's first token in its own way: what is new is decoded behind what is known.
        self._known: list[int] = []
        self._known_text = ""
        self._pending: list[int] = []

    def push(self, index: int) -> str:
        """The text that is whole with this id and was not before."""
        if not self._special and not self._chat.is_visible(index):
            return ""
        self._pending.append(index)
        text, size = self._text(len(self._pending)), len(self._pending)
        if text.endswith(_UNFINISHED):
            size = self._final(text) if size >= _PENDING else 0
            text = self._text(size)
        return self._take(text, size)

    def finish(self) -> str:
        """What is left: a character that was never finished."""
        return self._take(self._text(len(self._pending)), len(self._pending))

    def _text(self, size: int) -> str:
        return self._chat.raw_text([*self._known, *self._pending[:size]], special=self._special)

    def _take(self, text: str, size: int) -> str:
        if len(text) <= len(self._known_text):
            return ""
        piece = text[len(self._known_text) :]
        self._known, self._pending = self._pending[:size], self._pending[size:]
        self._known_text = self._chat.raw_text(self._known, special=self._special)
        return piece

    def _final(self, text: str) -> int:
        """How many of the pending ids no later one can change: the last three may belong to a character to come."""
        return next((n for n in range(len(self._pending) - 3, 0, -1) if text.startswith(self._text(n))), 0)


class OffsetTokenizer:
    """A tokenizer for one thread: a fast tokenizer that two threads use at once fails."""

    def __init__(self, wrapped: Any, chat: ChatTokenizer) -> None:
        self._wrapped = wrapped
        self.chat = chat

    def of_text(self, text: str) -> Tokens:
        """``text`` as the tokenizer reads it, special tokens that it begins with included (their text is empty)."""
        if not self._wrapped.is_fast:
            return self.of_ids(self._wrapped(text)["input_ids"])
        encoded = self._wrapped(text, return_offsets_mapping=True)
        spans = encoded["offset_mapping"]
        pieces = tuple(text[start:end] for start, end in spans)
        return Tokens(tuple(encoded["input_ids"]), pieces, tuple(start for start, _ in spans), text)

    def of_ids(self, ids: Sequence[int], begin: int = 0) -> Tokens:
        """``ids`` as text, special tokens shown, offsets from ``begin`` on. The text of a character that several tokens
        make up belongs to the last of them."""
        stream = TextStream(self.chat, special=True)
        pieces = [stream.push(index) for index in ids]
        if pieces:
            pieces[-1] += stream.finish()
        offsets = []
        for piece in pieces:
            offsets.append(begin)
            begin += len(piece)
        return Tokens(tuple(ids), tuple(pieces), tuple(offsets), "".join(pieces))

    def token_text(self, index: int) -> str:
        """The text of a token by itself."""
        return self.chat.raw_text([index], special=True)

    def token_bytes(self, index: int) -> list[int] | None:
        """The bytes of a token, also where they are a part of a character; None where nothing tells."""
        text = self.token_text(index)
        if _UNFINISHED not in text:
            return list(text.encode())
        name = str(self._wrapped.convert_ids_to_tokens(index))
        if match := re.fullmatch("<0x([0-9A-F]{2})>", name):
            return [int(match[1], 16)]
        if set(name) <= _byte_names().keys():
            return [_byte_names()[character] for character in name]
        return list(text.encode()) if name == text else None

    def response_text(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """The text of a response up to the first of ``stops``, special tokens left out."""
        text = self.chat.raw_text(ids)
        return text[: min([at for at in map(text.find, stops) if at >= 0], default=len(text))]

    def parts(self, ids: Sequence[int], stops: Sequence[str]) -> list[tuple[str, int]]:
        """``response_text`` in parts of whole characters, and how many of ``ids`` each part takes."""
        text, stream = self.response_text(ids, stops), TextStream(self.chat)
        parts, at, size = [], 0, 0
        for index in ids:
            size += 1
            end = min(len(text), at + len(stream.push(index)))
            if end > at:
                parts.append((text[at:end], size))
                at, size = end, 0
        return [*parts, (text[at:], size)] if size or at < len(text) else parts


@cache
def _byte_names() -> dict[str, int]:
    """The character by which a byte-level vocabulary names each byte."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    return {name: byte for byte, name in bytes_to_unicode().items()}
