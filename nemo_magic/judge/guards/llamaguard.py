"""Llama Guard 3: ``safe``, or ``unsafe`` and usually a line of category codes. It knows nothing of refusals."""

from __future__ import annotations

import re
from types import MappingProxyType

from nemo_magic.game.episode import Safety
from nemo_magic.judge.guards.base import ChatGuard, Opinion
from nemo_magic.judge.guards.verdict_text import verdict_text
from nemo_magic.judge.protocol import Ask

CODES = tuple(f"S{number}" for number in range(1, 15))
_TEXT = re.compile(r"(safe|unsafe(?:\n(S[0-9]+(?:, ?S[0-9]+)*))?)")


class LlamaGuard(ChatGuard):
    """Safety of prompts and responses, with the codes of the categories of harm."""

    name = "llamaguard"
    grammar = "2"
    kinds = MappingProxyType(
        {
            "prompt": frozenset({Ask.PROMPT_SAFETY}),
            "response": frozenset({Ask.RESPONSE_SAFETY}),
        }
    )
    max_tokens = 64
    markers = (
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<BEGIN CONVERSATION>",
        "<END CONVERSATION>",
    )

    def parse(self, kind: str, text: str) -> Opinion:
        """Raises ValueError for a text that is neither ``safe`` nor ``unsafe`` and at most a line of known codes."""
        match = _TEXT.fullmatch(verdict_text(text))
        if match is None:
            raise ValueError("the guard's text is neither 'safe' nor 'unsafe' and a line of category codes")
        codes = tuple(dict.fromkeys(re.split(", ?", match[2]))) if match[2] else ()
        if any(code not in CODES for code in codes):
            raise ValueError("a category code that Llama Guard 3 does not have")
        safety = Safety.SAFE if match[1] == "safe" else Safety.UNSAFE
        if kind == "prompt":
            return Opinion(prompt_safety=safety, categories=codes)
        return Opinion(response_safety=safety, categories=codes)
