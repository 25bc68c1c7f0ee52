"""Chats to token ids and back, through the tokenizer NeMo loaded for a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nemo_magic.actors.control_tokens import ControlTokens
from nemo_magic.actors.errors import ModelError
from nemo_magic.game.episode import Message


class ChatTokenizer:
    """A role's chat template and vocabulary.

    Raises:
        ValueError: when the tokenizer has no chat template, or no end token; both decide what is trained on and are
            never guessed.
    """

    def __init__(self, nemo_tokenizer: Any) -> None:
        wrapped: Any = getattr(nemo_tokenizer, "tokenizer", None)
        if not getattr(wrapped, "chat_template", None):
            raise ValueError(
                "model.tokenizer has no chat template: use model.tokenizer.library=huggingface and a "
                "model.tokenizer.type folder whose tokenizer_config.json has chat_template (transformers before 4.50 "
                "does not read chat_template.jinja: copy its text there)"
            )
        self._tokenizer = self.wrapped = wrapped
        if wrapped.eos_token_id is None:
            raise ValueError("model.tokenizer has no end token (eos_token in tokenizer_config.json)")
        self.end_id: int = wrapped.eos_token_id
        pad = wrapped.pad_token_id
        self.pad_id: int = self.end_id if pad is None else pad
        self.size: int = len(wrapped)
        self._visible: dict[int, bool] = {}
        self._control = ControlTokens(wrapped)

    @property
    def neutralised(self) -> int:
        """Control tokens that messages and texts spelled and that were encoded as text, so far."""
        return self._control.neutralised

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of a chat up to where the assistant begins its turn. Control tokens are the template's alone.

        Raises ModelError, with the template's own words, for a chat that the template refuses.
        """
        with self._template_words(messages):
            return tuple(self._control.encode_chat([{"role": m.role, "content": m.content} for m in messages]))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """The ids a model should have produced to say ``text``, end token included."""
        return (*self.encode(text), self.end_id)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of plain text, nothing added, and no control token whatever it spells."""
        return tuple(self._control.encode(text))

    def text(self, ids: Sequence[int]) -> str:
        """Decoded text without special tokens and surrounding white space."""
        return self.raw_text(ids).strip()

    def raw_text(self, ids: Sequence[int], special: bool = False) -> str:
        """Decoded text, white space and all; special tokens only where ``special``. Ids outside the vocabulary (padding
        of the embedding) are left out."""
        # An array: of a list, transformers asks every id by itself which framework it comes from.
        known = np.array([i for i in ids if i < self.size], dtype=np.int64)
        return str(self._tokenizer.decode(known, skip_special_tokens=not special))

    def is_visible(self, index: int) -> bool:
        """Whether ``text`` shows the token: it is of the vocabulary, and not special."""
        if index not in self._visible:
            hidden = not self.raw_text([index]) and bool(self.raw_text([index], special=True))
            self._visible[index] = index < self.size and not hidden
        return self._visible[index]

    def single_id(self, text: str) -> int | None:
        """The id of ``text`` if one token stands for it, whatever the vocabulary calls that token: in a byte-level one
        ``é`` is the name of a single byte, and no text."""
        index = self._tokenizer.convert_tokens_to_ids(text)
        if not isinstance(index, int) or index == self._tokenizer.unk_token_id:
            return None
        return index if self.raw_text([index], special=True) == text else None

    @contextmanager
    def _template_words(self, messages: Sequence[Message]) -> Iterator[None]:
        """Turn what a template raises into a ModelError."""
        from jinja2 import TemplateError

        try:
            yield
        except TemplateError as error:
            roles = ", ".join(dict.fromkeys(message.role for message in messages))
            hint = (
                ". If it has no system role, leave game.prompts.attacker_system, attacker_system_turns and "
                "defender_system empty (or system out of a pool's messages), or use a template that has one"
            )
            raise ModelError(
                f"the chat template of {self._tokenizer.name_or_path} takes no chat of the roles {roles}: {error}"
                + (hint if "system" in roles else "")
            ) from error
