"""A model behind any OpenAI-compatible server: vLLM, trtllm-serve, SGLang, llama.cpp; several urls are replicas.

Raw prompts go to ``/completions``, chats to ``/chat/completions``. A server that has another model is an error that
names both: another model's text is no answer of this guard.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx

from nemo_magic.config_checks import PositiveFloat, PositiveInt
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.models.base import ModelRefused, Sent, WrongModel
from nemo_magic.judge.telemetry import NO_TELEMETRY, Telemetry
from nemo_magic.net.endpoint import GenerationEndpointConfig
from nemo_magic.net.faults import BrokenReply, one_line
from nemo_magic.net.limits import likely_tokens
from nemo_magic.net.openai import (
    ChatCompletion,
    Completion,
    ModelList,
    error_as_status,
    error_text,
    is_too_long,
    raise_if_unavailable,
    read_reply,
    total_tokens,
    wrong_model,
)
from nemo_magic.net.retrying_client import RetryingClient

_OF_SCHEMA = ("response_format", "json_schema")
_FIXED = ("model", "prompt", "messages", "max_tokens", "temperature", "n", "stream")


@dataclass
class OpenAIConfig(GenerationEndpointConfig):
    """Where a guard's model is served: the keys of GenerationEndpointConfig and these.

    ``json_schema``: the schema of a JSON answer is sent along as ``response_format``, where a guard has one; false for
    a server that takes none. ``revision``: of the model's weights, which no server tells; verdicts and the cache go by
    it: change it with them. ``reply_model``: what the server calls the model in its replies, where that is not
    ``model``: a proxy lists its own name and passes on another. The server gets ``start_timeout`` seconds to load the
    model. With ``hedge`` a second replica is asked too where the first is slower than 95 % of answers. ``rate_limit``
    holds for this judge; of several judges each has its own.
    """

    KEY: ClassVar[str] = "judge.guard_config.model"
    NOUN: ClassVar[str] = "guard's model"
    """What logs and errors call the model."""

    model: str = ""
    max_concurrency: PositiveInt = 64
    give_up_after: PositiveFloat = 30.0
    backoff_max: PositiveFloat = 5.0
    revision: str = "unpinned"
    reply_model: str | None = None
    start_timeout: PositiveFloat = 1800.0
    json_schema: bool = True
    hedge: bool = False

    def __post_init__(self) -> None:
        self.urls = [self.urls] if isinstance(self.urls, str) else list(self.urls)
        if not self.urls:
            raise ValueError(f"{self.KEY}.urls is empty: name at least one server")
        if not self.model:
            raise ValueError(f"{self.KEY}.model is empty: give the name under which the server has it")
        super().__post_init__()
        self._check_extra_body(_FIXED, (), "what the guard asks")


class OpenAIModel:
    """The model of ``config``; ``clock`` (seconds) measures outages.

    Raises ValueError if the token's environment variable is empty.
    """

    def __init__(self, config: OpenAIConfig, clock: Callable[[], float] = time.monotonic) -> None:
        config.token()  # known now and not when the server starts
        self.telemetry: Telemetry = NO_TELEMETRY
        self._config = config
        self._clock = clock
        self._client: RetryingClient | None = None

    @property
    def takes_schema(self) -> bool:
        """As configured."""
        return self._config.json_schema

    @property
    def name(self) -> str:
        """The configured one."""
        return self._config.model

    @property
    def revision(self) -> str:
        """The configured one; with ``extra_body``, which changes answers, a digest of that."""
        if not self._config.extra_body:
            return self._config.revision
        extra = json.dumps(self._config.extra_body, sort_keys=True)
        return f"{self._config.revision}+{hashlib.sha256(extra.encode()).hexdigest()[:8]}"

    async def start(self) -> None:
        """Wait until a server lists the model.

        Raises WrongModel if it lists others, ModelRefused for a wrong token or a reply that is no list of models, both
        of which are a GuardUnavailable, and GuardUnavailable itself after ``start_timeout``.
        """
        cfg = self._config
        self._client = RetryingClient(
            cfg, cfg.NOUN, cfg.KEY, GuardUnavailable, self._clock, hedge=cfg.hedge, limit=cfg.rate_limit
        )
        await self._client.until_ready("/models", self._read_models, cfg.start_timeout)

    async def complete(self, sent: Sent, max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        """The text that the server generates, at most ``max_tokens`` of it; with ``schema`` as its ``response_format``,
        unless ``extra_body`` has one.

        Raises GuardUnavailable before ``start``, after ``give_up_after`` seconds without an answer, for another model
        (WrongModel) and for a refused token, route or schema (ModelRefused); ValueError for a refused text, one that is
        too long, or one that is answered with what is no completion, ``protocol_retries`` times.
        """
        if self._client is None:
            raise GuardUnavailable(f"the {self._config.NOUN} is not started")
        body: dict[str, Any] = {"model": self._config.model, "temperature": 0.0, "max_tokens": max_tokens, "n": 1}
        if isinstance(sent, str):
            path, body["prompt"] = "/completions", sent
        else:
            path = "/chat/completions"
            body["messages"] = [{"role": message.role, "content": message.content} for message in sent]
        if schema is not None:
            named = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        content = json.dumps(body | self._config.extra_body).encode()
        try:
            text, _ = await self._client.ask(
                lambda url: self._ask(f"{url}{path}", content, isinstance(sent, str)),
                likely_tokens(content, max_tokens),
                lambda completion: completion[1],
            )
        except BrokenReply as fault:
            retries = f"{self._config.KEY}.protocol_retries={self._config.protocol_retries}"
            raise ValueError(f"no completion after {retries}; last: {fault}") from fault
        return text

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, url: str, body: bytes, raw: bool) -> tuple[str, int | None]:
        """One request: the text, and how many tokens it took if the server tells.

        Raises Unavailable, BrokenReply, ModelRefused, WrongModel or ValueError.
        """
        assert self._client is not None
        response = error_as_status(await self._client.post(url, body))
        if not response.is_success and any(word in error_text(response) for word in _OF_SCHEMA):
            raise ModelRefused(
                f"{url}: {response.status_code} {one_line(error_text(response))}; for a server that takes no JSON "
                f"schema set {self._config.KEY}.json_schema=false"
            )
        self._check_status(url, response)
        if is_too_long(response):
            raise ValueError(f"too long for {self.name}: {one_line(error_text(response), 200)}")
        if response.status_code == 404:
            raise ModelRefused(f"{url}: 404 {one_line(error_text(response))}")
        if not response.is_success:
            raise ValueError(f"{url}: {response.status_code} {one_line(error_text(response))}")
        model: str | None
        if raw:
            completion = read_reply(Completion, url, response)
            model, text, usage = completion.model, completion.choices[0].text, completion.usage
        else:
            chat = read_reply(ChatCompletion, url, response)
            model, text, usage = chat.model, chat.choices[0].message.content or "", chat.usage
        if model is None:
            raise BrokenReply(f"{url}: model: Field required")
        if wrong := wrong_model(url, model, self._config.KEY, self.name, self._config.reply_model):
            raise WrongModel(wrong)
        return text, total_tokens(usage)

    def _read_models(self, url: str, response: httpx.Response) -> None:
        self._check_status(url, response)
        if response.status_code != 200:
            raise ModelRefused(
                f"{url}/models: {response.status_code} {one_line(error_text(response))}; is it an OpenAI base url?"
            )
        try:
            known = [model.id for model in read_reply(ModelList, f"{url}/models", response).data]
        except BrokenReply as error:
            raise ModelRefused(f"no list of models at {error}") from error
        if self.name not in known:
            raise WrongModel(
                f"{url} has {', '.join(map(repr, known)) or 'no model'}; {self._config.KEY}.model={self.name!r}"
            )

    def _check_status(self, url: str, response: httpx.Response) -> None:
        status = response.status_code
        if status in (401, 403):
            variable = f"{self._config.KEY}.token_env={self._config.token_env or 'null'}"
            raise ModelRefused(f"{url}: {status} {one_line(error_text(response))}; see {variable}")
        raise_if_unavailable(url, response)


def openai_model(**settings: Any) -> OpenAIModel:
    """An OpenAIModel from the keys of OpenAIConfig."""
    return OpenAIModel(OpenAIConfig(**settings))
