"""The JSON of replies: whole, or as a stream of server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nemo_magic.serving.engine import GenerationResult
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer, Tokens

JSON = dict[str, Any]


class Choice(Protocol):
    """One response, as a part of a reply."""

    def whole(self) -> JSON:
        """The choice of a reply in one piece."""

    def deltas(self) -> Iterator[JSON]:
        """The choice in parts of whole characters. The last says why it ends, and has no text."""


@dataclass(frozen=True)
class Reply:
    """``kind`` and ``prefix`` of its id: OpenAI's. ``prompt``, ``response``: tokens, for the usage."""

    model: str
    kind: str
    prefix: str
    choices: Sequence[Choice]
    prompt: int
    response: int

    def body(self) -> JSON:
        """The reply in one piece."""
        return self._head(self.kind) | {"choices": [one.whole() for one in self.choices], "usage": self._usage()}

    def events(self, chunk_kind: str, with_usage: bool) -> Iterator[str]:
        """The reply as a stream; choice after choice."""
        head = self._head(chunk_kind)
        unknown: JSON = {"usage": None} if with_usage else {}
        for choice in self.choices:
            for delta in choice.deltas():
                yield _event(head | {"choices": [delta]} | unknown)
        if with_usage:
            yield _event(head | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> JSON:
        name = f"{self.prefix}-{secrets.token_hex(12)}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.model}

    def _usage(self) -> JSON:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.response,
            "total_tokens": self.prompt + self.response,
        }


@dataclass(frozen=True)
class TextChoice:
    """A choice of POST /v1/completions. ``scored``: with log-probabilities; ``echo``: the prompt comes first."""

    tokenizer: OffsetTokenizer
    index: int
    prompt: Tokens
    result: GenerationResult
    stops: Sequence[str]
    scored: bool
    echo: bool

    def whole(self) -> JSON:
        """As ``Choice.whole``."""
        text = self.tokenizer.response_text(self.result.response, self.stops)
        return self._choice(self.prompt.text + text if self.echo else text, self._logprobs(), _reason(self.result))

    def deltas(self) -> Iterator[JSON]:
        """As ``Choice.deltas``."""
        parts = self.tokenizer.parts(self.result.response, self.stops)
        if self.echo:
            parts = [(self.prompt.text, len(self.prompt.ids)), *parts]
        logprobs, start = self._logprobs(), 0
        for text, size in parts:
            part = logprobs and {name: values[start : start + size] for name, values in logprobs.items()}
            yield self._choice(text, part, None)
            start += size
        yield self._choice("", None, _reason(self.result))

    def _choice(self, text: str, logprobs: JSON | None, reason: str | None) -> JSON:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self) -> dict[str, list[Any]] | None:
        """Tokens of prompt (where it is echoed) and response, their offsets in the text, log-probabilities."""
        if not self.scored:
            return None
        prompt, result, tokenizer = self.prompt, self.result, self.tokenizer
        response = tokenizer.of_ids(result.response, len(prompt.text) if self.echo else 0)
        skip = 0 if self.echo else len(prompt.ids)
        likeliest: list[dict[str, float] | None] = []
        for own, logprob, top in zip(
            (*prompt.ids, *response.ids)[skip:], result.logprobs[skip:], result.top[skip:], strict=True
        ):
            # Two tokens may have the same text: the likelier one counts.
            by_text: dict[str, float] = {}
            for index, value in (*top, *([] if logprob is None else [(own, logprob)])):
                name = tokenizer.token_text(index)
                by_text[name] = max(value, by_text.get(name, value))
            likeliest.append(None if logprob is None else by_text)
        return {
            "tokens": [*(prompt.pieces if self.echo else ()), *response.pieces],
            "token_logprobs": list(result.logprobs[skip:]),
            "top_logprobs": likeliest,
            "text_offset": [*(prompt.offsets if self.echo else ()), *response.offsets],
        }


@dataclass(frozen=True)
class ChatChoice:
    """A choice of POST /v1/chat/completions. ``scored``: with log-probabilities."""

    tokenizer: OffsetTokenizer
    index: int
    result: GenerationResult
    stops: Sequence[str]
    scored: bool

    def whole(self) -> JSON:
        """As ``Choice.whole``."""
        text = self.tokenizer.response_text(self.result.response, self.stops)
        message = {"role": "assistant", "content": text}
        logprobs = self._logprobs(0, len(self.result.response))
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": _reason(self.result)}

    def deltas(self) -> Iterator[JSON]:
        """As ``Choice.deltas``."""
        yield self._delta({"role": "assistant", "content": ""}, None, None)
        start = 0
        for text, size in self.tokenizer.parts(self.result.response, self.stops):
            yield self._delta({"content": text}, self._logprobs(start, size), None)
            start += size
        yield self._delta({}, None, _reason(self.result))

    def _delta(self, delta: JSON, logprobs: JSON | None, reason: str | None) -> JSON:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, start: int, size: int) -> JSON | None:
        """Those of ``size`` tokens of the response from ``start`` on."""
        if not self.scored:
            return None

        def entry(index: int, logprob: float | None) -> JSON:
            name, code = self.tokenizer.token_text(index), self.tokenizer.token_bytes(index)
            return {"token": name, "logprob": logprob, "bytes": code}

        result = self.result
        skip = len(result.logprobs) - len(result.response)
        rows = list(zip(result.response, result.logprobs[skip:], result.top[skip:], strict=True))
        return {
            "content": [
                entry(index, own) | {"top_logprobs": [entry(*each) for each in top]}
                for index, own, top in rows[start : start + size]
            ]
        }


def _reason(result: GenerationResult) -> str:
    return "stop" if result.finished else "length"


def _event(body: JSON) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False)}\n\n"
