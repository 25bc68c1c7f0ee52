"""Texts to ids and back, with the offset of every token in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_magic.actors.tokenizer import ChatTokenizer

_UNFINISHED = "�"


@dataclass(frozen=True)
class Tokens:
    """Ids, the text each of them stands for, where that begins, and the whole text."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    offsets: tuple[int, ...]
    text: str


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
        pieces: list[str] = []
        offsets: list[int] = []
        start, done = 0, 0
        for end in range(1, len(ids) + 1):
            offsets.append(begin)
            prefix = self.chat.raw_text(ids[start:done], special=True)
            text = self.chat.raw_text(ids[start:end], special=True)
            if len(text) > len(prefix) and not text.endswith(_UNFINISHED):
                pieces.append(text[len(prefix) :])
                begin += len(pieces[-1])
                start, done = done, end
            else:
                pieces.append("")
        return Tokens(tuple(ids), tuple(pieces), tuple(offsets), "".join(pieces))

    def token_text(self, index: int) -> str:
        """The text of a token by itself."""
        return self.chat.raw_text([index], special=True)

    def response_text(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """The text of a response up to the first of ``stops``, special tokens left out."""
        text = self.chat.raw_text(ids)
        return text[: min([at for at in map(text.find, stops) if at >= 0], default=len(text))]
