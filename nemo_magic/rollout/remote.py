"""A role that a server plays: chats in, futures of completions out, over any OpenAI-compatible endpoint.

It fails closed. A text is returned only if the server gave it to exactly that chat. A chat that is too long for the
server's model is None, an outage ends as RemoteUnavailable, and a refusal of the request as RemoteRefused at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import httpx
from typing_extensions import Self

from nemo_magic.actors.config import ActorConfig
from nemo_magic.actors.errors import RemoteProtocolError, RemoteRefused, RemoteUnavailable
from nemo_magic.game.episode import Completion
from nemo_magic.game.prompts import Chat
from nemo_magic.net.background_client import BackgroundClient
from nemo_magic.net.faults import BrokenReply, one_line, unavailable_from
from nemo_magic.net.limits import likely_tokens
from nemo_magic.net.openai import (
    ChatCompletion,
    ModelList,
    error_text,
    is_too_long,
    raise_if_unavailable,
    read_reply,
    total_tokens,
)
from nemo_magic.net.tasks import gather


@dataclass
class _Counters:
    completions: int = 0
    too_long: int = 0


class RemotePolicy:
    """Generates a role's messages at ``config.remote.urls``.

    ``config.sampling_params`` and ``config.length_params`` are sent with each request. ``key`` is what messages call
    ``config.remote``, e.g. ``actors.attacker.remote``; ``clock`` (seconds) measures outages.
    ``clients``: how many ranks have one, each with its share of ``config.remote.rate_limit``. A completion has no token
    ids and no logprobs: a remote role's tokens are never trained on.

    Raises ValueError without urls or model, or if the token's environment variable is empty.
    """

    def __init__(
        self,
        config: ActorConfig,
        key: str = "remote",
        clock: Callable[[], float] = time.monotonic,
        clients: int = 1,
    ) -> None:
        if not (config.remote.urls and config.remote.model):
            raise ValueError(f"{key}.urls and {key}.model have to be given for a role that a server plays")
        self._config = config
        self._model = config.remote.model
        self._key = key
        self._counters = _Counters()
        limit = config.remote.rate_limit.shared(clients)
        self._client = BackgroundClient(config.remote, "remote model", key, RemoteUnavailable, clock, limit=limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool = False
    ) -> Future[list[Completion | None]]:
        """A completion per chat, in order; None where the chat does not fit the server's model.

        ``seeds`` (one per chat) are sent, reduced to 31 bits; what a server makes of them is its own business.
        ``greedy`` asks for temperature 0. ``text`` is the message without surrounding white space, empty where the
        server gave none, as its content filter does.

        Raises ValueError at once if there is not one seed per chat, RuntimeError once the client is closed. The future
        raises RemoteUnavailable after ``give_up_after`` seconds without an answer, RemoteRefused if the server does not
        take the token or the request, RemoteProtocolError if it keeps answering with what is no chat completion.
        """
        bodies = [self._body(chat, seed, greedy) for chat, seed in zip(chats, seeds, strict=True)]
        return self._client.submit(gather(self._complete(body) for body in bodies))

    def generate(self, chats: Sequence[Chat], seeds: Sequence[int], greedy: bool = False) -> list[Completion | None]:
        """The result of ``submit``. Raises what that and its future raise."""
        return self.submit(chats, seeds, greedy).result()

    def truncate_to_context(self, text: str, chat_of: Callable[[str], Chat]) -> str:
        """``text``: only the server knows how much of it its model can read."""
        return text

    def wait_ready(self, timeout_s: float) -> None:
        """Return once a replica answers, accepts the token and, if it lists its models, has this one.

        Raises RemoteUnavailable if none answers within ``timeout_s`` seconds, RemoteRefused for a wrong token or model.
        """
        self._client.submit(self._client.until_ready("/models", self._read_models, timeout_s)).result()

    def stats(self) -> dict[str, float]:
        """Totals since the client began: completions, chats too long, requests, latencies, seconds of outage."""
        return self._client.stats() | asdict(self._counters)

    def close(self) -> None:
        """Cancel what is pending and end the thread. Futures still pending are cancelled."""
        self._client.close()

    def _body(self, chat: Chat, seed: int, greedy: bool) -> bytes:
        sampling = self._config.sampling_params
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in chat],
            "temperature": 0.0 if greedy or sampling.use_greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": self._config.length_params.max_length,
            "seed": seed & 0x7FFFFFFF,
            "n": 1,
        }
        if sampling.end_strings:
            body["stop"] = list(sampling.end_strings)
        body |= self._config.remote.extra_body
        return json.dumps({name: value for name, value in body.items() if value is not None}).encode()

    async def _complete(self, body: bytes) -> Completion | None:
        try:
            reserved = likely_tokens(body, self._config.length_params.max_length)
            completion, _ = await self._client.ask(lambda url: self._ask(url, body), reserved, lambda reply: reply[1])
        except BrokenReply as fault:
            retries = f"{self._key}.protocol_retries={self._config.remote.protocol_retries}"
            raise RemoteProtocolError(f"no chat completion after {retries}; last: {fault}") from fault
        self._counters.completions += completion is not None
        self._counters.too_long += completion is None
        return completion

    async def _ask(self, url: str, body: bytes) -> tuple[Completion | None, int | None]:
        """One request: the completion, and how many tokens it took if the server tells.

        Raises Unavailable, BrokenReply or RemoteRefused.
        """
        response = await self._client.post(f"{url}/chat/completions", body)
        self._check_status(url, response)
        if is_too_long(response):
            return None, None
        if not response.is_success:
            raise RemoteRefused(f"{url}: {response.status_code} {one_line(error_text(response))}")
        reply = read_reply(ChatCompletion, url, response)
        [choice] = reply.choices
        text = (choice.message.content or "").strip()
        completion = Completion((), (), (), text, finished=choice.finish_reason != "length")
        return completion, total_tokens(reply.usage)

    def _read_models(self, url: str, response: httpx.Response) -> None:
        self._check_status(url, response)
        if response.status_code == 404:
            return  # not every server lists its models
        if response.status_code != 200:
            raise unavailable_from(url, response, error_text(response))
        try:
            known = [model.id for model in read_reply(ModelList, url, response).data]
        except BrokenReply:
            known = []  # nor in OpenAI's way
        if known and self._model not in known:
            nearest = ", ".join(get_close_matches(self._model, known, n=3, cutoff=0.0))
            raise RemoteRefused(f"{url} has no model {self._key}.model={self._model}; the nearest are: {nearest}")

    def _check_status(self, url: str, response: httpx.Response) -> None:
        status = response.status_code
        if status in (401, 403):
            variable = f"{self._key}.token_env={self._config.remote.token_env or 'null'}"
            raise RemoteRefused(f"{url}: {status} {one_line(error_text(response))}; see {variable}")
        raise_if_unavailable(url, response)
