"""Texts to vectors, by any OpenAI-compatible server. What was embedded is written down, and asked for no more."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import httpx
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.config.analysis import EmbeddingConfig
from nemo_magic.net.faults import BrokenReply, first_fault, outage
from nemo_magic.net.openai import NOT_NOW, is_too_long, words
from nemo_magic.net.retrying_client import RetryingClient, gather
from nemo_magic.rollout.response_cache import ResponseCache, cache_key

_KEY = "analysis.embedding"
_TOO_LARGE = "too large to process"
"""llama.cpp's word for a text that is too long, with status 500."""
_NEVER = 501
"""Not now and not later: a server that was started without embeddings."""
_REQUESTS = 8
"""Requests whose answers are written down at once."""
Vector = npt.NDArray[np.float32]


class _Entry(BaseModel):
    index: int
    embedding: Annotated[list[FiniteFloat], Field(min_length=1)]


class _Embeddings(BaseModel):
    model: str
    data: list[_Entry]


class Embedder:
    """Embeds at ``config.urls``."""

    def __init__(self, config: EmbeddingConfig, journal: ResponseCache) -> None:
        self._config = config
        self._journal = journal
        self.asked = 0
        """Texts that were newly embedded."""

    @property
    def name(self) -> str:
        return f"{self._config.model}:{self._config.revision}"

    def embed(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Text → its vector; texts that are longer than the model reads are missing.

        Raises:
            AnalysisError: the server cannot be asked now, or gives no embeddings. What it gave is written down.
        """
        keys = {self._key(text): text for text in texts if text}
        if wanted := self._journal.missing(keys):
            try:
                asyncio.run(self._embed([keys[key] for key in wanted]))
            except BrokenReply as fault:
                raise AnalysisError(f"no embeddings after {_KEY}.protocol_retries; last: {fault}") from fault
            except AnalysisError as error:
                kept = len(keys) - len(self._journal.missing(keys))
                raise AnalysisError(
                    f"{error}; of {len(keys)} texts {kept} are embedded and kept; the same command goes on from there"
                ) from error
        found = {text: self._journal[key] for key, text in keys.items()}
        vectors = {
            text: np.frombuffer(base64.b64decode(value), dtype="<f4")
            for text, value in found.items()
            if value is not None
        }
        if len({len(vector) for vector in vectors.values()}) > 1:
            raise AnalysisError(f"{_KEY}.model={self._config.model}: vectors of different lengths: change its revision")
        return vectors

    async def _embed(self, texts: Sequence[str]) -> None:
        asker = RetryingClient(self._config, "embedding model", _KEY, AnalysisError)
        try:
            size = self._config.batch_size
            batches = [texts[start : start + size] for start in range(0, len(texts), size)]
            for first in range(0, len(batches), _REQUESTS):
                answers = await gather(self._batch(asker, batch) for batch in batches[first : first + _REQUESTS])
                new = {self._key(text): vector for answer in answers for text, vector in answer.items()}
                self._journal.add({key: None if v is None else base64.b64encode(v).decode() for key, v in new.items()})
                self.asked += len(new)
        finally:
            await asker.aclose()

    async def _batch(self, asker: RetryingClient, texts: Sequence[str]) -> dict[str, bytes | None]:
        found = await asker.ask(lambda url: self._ask(asker, url, texts))
        if found is not None:
            return dict(zip(texts, found, strict=True))
        if len(texts) == 1:
            return {texts[0]: None}
        # One of them is too long; the server does not say which.
        alone = [await self._batch(asker, [text]) for text in texts]
        return {text: vector for one in alone for text, vector in one.items()}

    async def _ask(self, asker: RetryingClient, url: str, texts: Sequence[str]) -> list[bytes] | None:
        """One request; None where a text is too long. Raises Outage, Broken or AnalysisError."""
        body = {"model": self._config.model, "input": list(texts), "encoding_format": "float"}
        response = await asker.post(f"{url}/embeddings", json.dumps(body).encode())
        if is_too_long(response) or (response.is_error and _TOO_LARGE in words(response)):
            return None
        status = response.status_code
        if status in NOT_NOW or (status >= 500 and status != _NEVER):
            raise outage(url, response, words(response))
        if not response.is_success:
            raise AnalysisError(f"{url}/embeddings: {response.status_code} {words(response)[:300]}; see {_KEY}")
        return self._read(url, response, len(texts))

    def _read(self, url: str, response: httpx.Response, count: int) -> list[bytes]:
        try:
            found = _Embeddings.model_validate_json(response.content)
        except ValidationError as error:
            raise BrokenReply(f"{url}: {first_fault(error)}") from error
        if found.model != self._config.model:
            raise AnalysisError(f"{url} answered with the model {found.model!r}; {_KEY}.model={self._config.model!r}")
        by_index: Mapping[int, list[float]] = {entry.index: entry.embedding for entry in found.data}
        if len(found.data) != count or sorted(by_index) != list(range(count)):
            raise BrokenReply(f"{url}: {len(found.data)} embeddings of {count} texts, or not one of each")
        vectors = np.array([by_index[i] for i in range(count)], dtype="<f4") if _even(by_index) else None
        if vectors is None or not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=1).all():
            raise BrokenReply(f"{url}: vectors of different lengths, or without a direction")
        return [vector.tobytes() for vector in vectors]

    def _key(self, text: str) -> str:
        return cache_key("embedding", self.name, text)


def _even(vectors: Mapping[int, Sequence[float]]) -> bool:
    return len({len(vector) for vector in vectors.values()}) == 1
