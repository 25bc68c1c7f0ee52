"""Texts to vectors, by any OpenAI-compatible server. Vectors are cached on disk and asked for once."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence

import httpx
import numpy as np
import numpy.typing as npt

from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.config.analysis import EmbeddingConfig
from nemo_magic.net.faults import BrokenReply, one_line
from nemo_magic.net.openai import Embeddings, error_text, is_too_long, raise_if_unavailable, read_reply, wrong_model
from nemo_magic.net.retrying_client import RetryingClient
from nemo_magic.net.tasks import gather
from nemo_magic.rollout.response_cache import ResponseCache, cache_key

_KEY = "analysis.embedding"
_TOO_LARGE = "too large to process"
"""llama.cpp's message for a text that is too long, with status 500."""
_NOT_IMPLEMENTED = 501
"""The status of a server that was started without embeddings: waiting does not help."""
_REQUESTS_PER_WRITE = 8
Vector = npt.NDArray[np.float32]


class Embedder:
    """Embeds texts at ``config.urls``; vectors are cached by the model's name and revision."""

    def __init__(self, config: EmbeddingConfig, cache: ResponseCache) -> None:
        self._config = config
        self._cache = cache
        self.new_texts = 0
        """Texts that were embedded, and not found in the cache."""

    @property
    def name(self) -> str:
        """Model and revision: a part of every cache key."""
        return f"{self._config.model}:{self._config.revision}"

    def embed(self, texts: Sequence[str]) -> dict[str, Vector]:
        """Text → its vector; texts that are longer than the model reads are missing.

        Raises:
            ValueError: the token's environment variable is empty.
            AnalysisError: the server cannot be asked now, or gives no embeddings. Vectors that it gave are cached.
        """
        keys = {self._key(text): text for text in texts if text}
        if missing := self._cache.missing(keys):
            try:
                asyncio.run(self._embed([keys[key] for key in missing]))
            except BrokenReply as fault:
                raise AnalysisError(f"no embeddings after {_KEY}.protocol_retries; last: {fault}") from fault
            except AnalysisError as error:
                cached = len(keys) - len(self._cache.missing(keys))
                raise AnalysisError(
                    f"{error}; of {len(keys)} texts {cached} are embedded and kept; the same command goes on from there"
                ) from error
        vectors = {
            text: np.frombuffer(base64.b64decode(value), dtype="<f4")
            for key, text in keys.items()
            if (value := self._cache[key]) is not None
        }
        if len({len(vector) for vector in vectors.values()}) > 1:
            raise AnalysisError(f"{_KEY}.model={self._config.model}: vectors of different lengths: change its revision")
        return vectors

    async def _embed(self, texts: Sequence[str]) -> None:
        client = RetryingClient(self._config, "embedding model", _KEY, AnalysisError)
        try:
            size = self._config.batch_size
            batches = [texts[start : start + size] for start in range(0, len(texts), size)]
            for first in range(0, len(batches), _REQUESTS_PER_WRITE):
                answers = await gather(
                    self._batch(client, batch) for batch in batches[first : first + _REQUESTS_PER_WRITE]
                )
                new = {self._key(text): vector for answer in answers for text, vector in answer.items()}
                self._cache.add({key: None if v is None else base64.b64encode(v).decode() for key, v in new.items()})
                self.new_texts += len(new)
        finally:
            await client.aclose()

    async def _batch(self, client: RetryingClient, texts: Sequence[str]) -> dict[str, bytes | None]:
        vectors = await client.ask(lambda url: self._ask(client, url, texts))
        if vectors is not None:
            return dict(zip(texts, vectors, strict=True))
        if len(texts) == 1:
            return {texts[0]: None}
        # One of them is too long; the server does not say which.
        single = [await self._batch(client, [text]) for text in texts]
        return {text: vector for one in single for text, vector in one.items()}

    async def _ask(self, client: RetryingClient, url: str, texts: Sequence[str]) -> list[bytes] | None:
        """One request; None where a text is too long. Raises Unavailable, BrokenReply or AnalysisError."""
        body = {"model": self._config.model, "input": list(texts), "encoding_format": "float"}
        response = await client.post(f"{url}/embeddings", json.dumps(body).encode())
        if is_too_long(response) or (response.is_error and _TOO_LARGE in error_text(response)):
            return None
        if response.status_code != _NOT_IMPLEMENTED:
            raise_if_unavailable(url, response)
        if not response.is_success:
            raise AnalysisError(
                f"{url}/embeddings: {response.status_code} {one_line(error_text(response))}; see {_KEY}"
            )
        return self._read(url, response, len(texts))

    def _read(self, url: str, response: httpx.Response, count: int) -> list[bytes]:
        reply = read_reply(Embeddings, url, response)
        if wrong := wrong_model(url, reply.model, _KEY, self._config.model, self._config.reply_model):
            raise AnalysisError(wrong)
        by_index: Mapping[int, list[float]] = {entry.index: entry.embedding for entry in reply.data}
        if len(reply.data) != count or sorted(by_index) != list(range(count)):
            raise BrokenReply(f"{url}: {len(reply.data)} embeddings of {count} texts, or not one of each")
        vectors = np.array([by_index[i] for i in range(count)], dtype="<f4") if _even(by_index) else None
        if vectors is None or not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=1).all():
            raise BrokenReply(f"{url}: vectors of different lengths, or without a direction")
        return [vector.tobytes() for vector in vectors]

    def _key(self, text: str) -> str:
        return cache_key("embedding", self.name, text)


def _even(vectors: Mapping[int, Sequence[float]]) -> bool:
    return len({len(vector) for vector in vectors.values()}) == 1
