"""Texts that are data stay data: what a message says never becomes a token that only the chat template may write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.game import tags

_PRIVATE_USE = range(0xE000, 0xF900)
_Span = tuple[int, int]


class ControlTokens:
    """The control tokens of a transformers ``tokenizer``, and encodings of texts that are free of them.

    ``ids``: special tokens, and added ones that the chat template writes around messages, whether they are declared
    special or not. The unknown token, which any text may hold, is none, and neither are the tags of the game.
    ``neutralised``: how many control tokens texts asked for and did not get, so far.

    Markers that are ordinary text (Llama 2's ``[INST]``, the sandbox's ``[user]``) are none: a user may spell them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.neutralised = 0
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        ids = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
        ids |= self._template_ids() & added.keys()
        self._unknown: int | None = tokenizer.unk_token_id
        texts = {self._token(i): i for i in ids}
        self.ids = frozenset(i for text, i in texts.items() if i != self._unknown and not tags.is_tag(text))
        self._pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"\Z(?!\Z)")

    def encode(self, text: str) -> list[int]:
        """The ids of ``text`` without any control token, nothing added."""
        return self._encode_parts(_cut(text, self._spans(text)))

    def encode_chat(self, chat: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a chat (``role``, ``content``) up to where the assistant begins its turn: the template's control
        tokens are in it, the messages' are not. A chat without any is encoded as transformers does."""
        spans = [self._spans(message["content"]) for message in chat]
        if not any(spans):
            return self._chat_ids(chat)
        # The template sees a placeholder for what has to stay text.
        written = "".join(message["content"] for message in chat)
        mark = next(chr(code) for code in _PRIVATE_USE if chr(code) not in written)
        plain: list[str] = []
        masked = []
        for message, found in zip(chat, spans, strict=True):
            content = ""
            for part, is_plain in _cut(message["content"], found):
                content += f"{mark}{len(plain)}{mark}" if is_plain else part
                plain += [part] if is_plain else []
            masked.append({**message, "content": content})
        rendered = self._tokenizer.apply_chat_template(masked, add_generation_prompt=True, tokenize=False)
        parts = re.split(f"{mark}([0-9]+){mark}", rendered)
        return self._encode_parts(
            [(plain[int(part)], True) if n % 2 else (part, False) for n, part in enumerate(parts)]
        )

    def _chat_ids(self, chat: Sequence[Mapping[str, str]]) -> list[int]:
        # By default transformers 5 returns a dictionary.
        ids: list[int] = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    def _encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for text, is_plain in parts:
            ids += self._plain(text) if is_plain else self._tokenizer.encode(text, add_special_tokens=False)
            self.neutralised += is_plain
        return ids

    def _spans(self, text: str) -> list[_Span]:
        """Where ``text`` would become control tokens."""
        if not self._tokenizer.is_fast:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if self.ids.isdisjoint(ids) and self._unknown not in ids:
                return []
            return [match.span() for match in self._pattern.finditer(text)]
        # By ids, not by their spelling: a normalizer may turn other characters into it.
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [
            (start, end)
            for index, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if index in self.ids or (index == self._unknown and self._pattern.fullmatch(text[start:end].strip()))
        ]

    def _plain(self, text: str) -> list[int]:
        """The ids of the spelling of a control token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if self.ids.isdisjoint(ids):
            return ids
        # The vocabulary has it as a word, too. Of a single character there is no other spelling.
        return [] if len(text) < 2 else self._plain(text[:1]) + self._plain(text[1:])

    def _token(self, index: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(index)).strip("▁Ġ")

    def _template_ids(self) -> set[int]:
        """All ids of chats of one letter."""
        roles = ("system", "user", "assistant", "user")
        found: set[int] = set()
        for first, last in ((0, 4), (1, 4), (1, 3), (1, 2)):
            chat = [{"role": role, "content": "a"} for role in roles[first:last]]
            try:
                found |= set(self._chat_ids(chat))
            except Exception:  # a template refuses what it was not written for, in its own words
                continue
        return found


def _cut(text: str, spans: Sequence[_Span]) -> list[tuple[str, bool]]:
    """The parts of ``text``, and of each whether it is one of ``spans``."""
    parts, done = [], 0
    for start, end in spans:
        parts += [(text[done:start], False), (text[start:end], True)]
        done = end
    return [(part, is_plain) for part, is_plain in [*parts, (text[done:], False)] if part]
