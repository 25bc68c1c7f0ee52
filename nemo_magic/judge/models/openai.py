"""A model behind any OpenAI-compatible server: vLLM, trtllm-serve, SGLang, llama.cpp; several urls are replicas.

Raw prompts go to ``/completions``, chats to ``/chat/completions``. A server that has another model is an error that
names both: what another model says is no answer of this guard.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, ValidationError

from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.models.base import ModelRefused, Sent, WrongModel
from nemo_magic.judge.telemetry import UNOBSERVED, Telemetry
from nemo_magic.net.faults import BrokenReply, first_fault, outage
from nemo_magic.net.limits import RateLimit, likely_tokens
from nemo_magic.net.openai import NOT_NOW, is_too_long, total_tokens, words
from nemo_magic.net.retrying_client import RetryingClient

_FIXED = ("model", "prompt", "messages", "max_tokens", "temperature", "n", "stream")


class _Text(BaseModel):
    text: str


class _Message(BaseModel):
    content: str | None


class _Chat(BaseModel):
    message: _Message


class _Completion(BaseModel):
    model: str
    choices: Annotated[list[_Text], Field(min_length=1, max_length=1)]
    usage: Any = None


class _ChatCompletion(BaseModel):
    model: str
    choices: Annotated[list[_Chat], Field(min_length=1, max_length=1)]
    usage: Any = None


class _Known(BaseModel):
    id: str


class _ModelList(BaseModel):
    data: list[_Known]


@dataclass
class OpenAIConfig:
    """Where a model is served. All times in seconds.

    ``urls``: replicas of one model, base urls as OpenAI clients take them, ending in ``/v1``. ``model``: its name
    there. ``revision``: of its weights, which no server tells; verdicts and the cache go by it: change it with them.
    ``token_env``: environment variable holding the bearer token. ``extra_body``: further keys of each request, e.g.
    ``{chat_template_kwargs: {enable_thinking: false}}``.

    ``max_concurrency`` requests are under way at once, each with ``request_timeout`` from first byte to last. While
    nothing answers, it is tried again after ``backoff_initial``, doubled each time up to ``backoff_max`` and jittered,
    until ``give_up_after`` passed without any success: then the judge says that its guard is away. What is no
    completion is asked for ``protocol_retries`` more times. The server gets ``start_timeout`` to load the model. With
    ``hedge`` a second replica is asked too where the first is slower than 95 % of answers. ``rate_limit``: ceilings a
    minute (``requests_per_minute``, ``tokens_per_minute``) of this judge; of several judges each has its own.
    """

    KEY: ClassVar[str] = "judge.guard_config.model"
    """Where these settings are in the configuration, and what logs and errors call the model."""
    NOUN: ClassVar[str] = "guard's model"

    urls: list[str]
    model: str
    revision: str = "unpinned"
    token_env: str | None = None
    max_concurrency: int = 64
    request_timeout: float = 60.0
    give_up_after: float = 30.0
    protocol_retries: int = 3
    backoff_initial: float = 0.2
    backoff_max: float = 5.0
    start_timeout: float = 1800.0
    hedge: bool = False
    extra_body: dict[str, Any] = field(default_factory=dict)
    rate_limit: RateLimit = field(default_factory=RateLimit)

    def __post_init__(self) -> None:
        self.urls = [self.urls] if isinstance(self.urls, str) else list(self.urls)
        if not self.urls:
            raise ValueError(f"{self.KEY}.urls is empty: name at least one server")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc or not parts.path.strip("/"):
                raise ValueError(f"{self.KEY}.urls={url!r} must be a base url such as http://host:8000/v1")
            if parts.path.rstrip("/").endswith("/completions"):
                raise ValueError(f"{self.KEY}.urls={url!r} must end before /completions, which is added")
        if not self.model:
            raise ValueError(f"{self.KEY}.model is empty: give the name under which the server has it")
        if self.max_concurrency < 1:
            raise ValueError(f"{self.KEY}.max_concurrency={self.max_concurrency} must be at least 1")
        for key in ("request_timeout", "give_up_after", "backoff_initial", "backoff_max", "start_timeout"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{self.KEY}.{key}={getattr(self, key)} must be greater than 0")
        if self.protocol_retries < 0:
            raise ValueError(f"{self.KEY}.protocol_retries={self.protocol_retries} must be at least 0")
        if isinstance(self.rate_limit, Mapping):  # as YAML has it
            known = [one.name for one in fields(RateLimit)]
            if unknown := set(self.rate_limit) - set(known):
                raise ValueError(f"{self.KEY}.rate_limit has no {sorted(unknown)[0]}: there are {', '.join(known)}")
            self.rate_limit = RateLimit(**self.rate_limit)
        for name in self.extra_body:
            if name in _FIXED:
                raise ValueError(
                    f"{self.KEY}.extra_body.{name} cannot be set here: it follows from what the guard asks"
                )

    def token(self) -> str | None:
        """The bearer token, or None where none is wanted. Raises ValueError if its variable is unset or empty."""
        if self.token_env is None:
            return None
        token = os.environ.get(self.token_env, "")
        if not token:
            raise ValueError(f"{self.KEY}.token_env={self.token_env}: this environment variable is unset or empty")
        return token


class OpenAIModel:
    """The model of ``config``; ``clock`` (seconds) is what patience is counted by.

    Raises ValueError if the token's environment variable is empty.
    """

    def __init__(self, config: OpenAIConfig, clock: Callable[[], float] = time.monotonic) -> None:
        config.token()  # known now and not when the server starts
        self.observer: Telemetry = UNOBSERVED
        self._config = config
        self._clock = clock
        self._asker: RetryingClient | None = None

    @property
    def name(self) -> str:
        return self._config.model

    @property
    def revision(self) -> str:
        """The configured one; with ``extra_body``, which changes answers, a digest of that."""
        if not self._config.extra_body:
            return self._config.revision
        extra = json.dumps(self._config.extra_body, sort_keys=True)
        return f"{self._config.revision}+{hashlib.sha256(extra.encode()).hexdigest()[:8]}"

    async def start(self) -> None:
        """Wait until a server lists the model. Raises WrongModel if it lists others, ModelRefused for a wrong token."""
        cfg = self._config
        self._asker = RetryingClient(
            cfg, cfg.NOUN, cfg.KEY, GuardUnavailable, self._clock, hedge=cfg.hedge, limit=cfg.rate_limit
        )
        await self._asker.until_ready("/models", self._read_models, cfg.start_timeout)

    async def complete(self, sent: Sent, max_tokens: int) -> str:
        if self._asker is None:
            raise GuardUnavailable(f"the {self._config.NOUN} is not started")
        body: dict[str, Any] = {"model": self._config.model, "temperature": 0.0, "max_tokens": max_tokens, "n": 1}
        if isinstance(sent, str):
            path, body["prompt"] = "/completions", sent
        else:
            path = "/chat/completions"
            body["messages"] = [{"role": message.role, "content": message.content} for message in sent]
        content = json.dumps(body | self._config.extra_body).encode()
        try:
            text, _ = await self._asker.ask(
                lambda url: self._ask(f"{url}{path}", content, isinstance(sent, str)),
                likely_tokens(content, max_tokens),
                lambda said: said[1],
            )
        except BrokenReply as fault:
            retries = f"{self._config.KEY}.protocol_retries={self._config.protocol_retries}"
            raise ValueError(f"no completion after {retries}; last: {fault}") from fault
        return text

    async def close(self) -> None:
        if self._asker is not None:
            await self._asker.aclose()

    async def _ask(self, url: str, body: bytes, raw: bool) -> tuple[str, int | None]:
        """One request: the text, and how many tokens it took if the server tells. Raises Outage, Broken, ModelRefused,
        WrongModel or ValueError."""
        assert self._asker is not None
        response = await self._asker.post(url, body)
        self._accepted(url, response)
        if is_too_long(response):
            raise ValueError(f"too long for {self.name}: {words(response)[:200]}")
        if response.status_code == 404:
            raise ModelRefused(f"{url}: 404 {words(response)[:300]}")
        if not response.is_success:
            raise ValueError(f"{url}: {response.status_code} {words(response)[:300]}")
        try:
            if raw:
                completion = _Completion.model_validate_json(response.content)
                model, text, usage = completion.model, completion.choices[0].text, completion.usage
            else:
                chat = _ChatCompletion.model_validate_json(response.content)
                model, text, usage = chat.model, chat.choices[0].message.content or "", chat.usage
        except ValidationError as error:
            raise BrokenReply(f"{url}: {first_fault(error)}") from error
        if model != self.name:
            raise WrongModel(f"{url} answered with the model {model!r}; {self._config.KEY}.model={self.name!r}")
        return text, total_tokens(usage)

    def _read_models(self, url: str, response: httpx.Response) -> None:
        self._accepted(url, response)
        if response.status_code != 200:
            raise ModelRefused(
                f"{url}/models: {response.status_code} {words(response)[:300]}; is it an OpenAI base url?"
            )
        try:
            known = [model.id for model in _ModelList.model_validate_json(response.content).data]
        except ValidationError as error:
            raise ModelRefused(f"{url}/models is no list of models: {first_fault(error)}") from error
        if self.name not in known:
            raise WrongModel(
                f"{url} has {', '.join(map(repr, known)) or 'no model'}; {self._config.KEY}.model={self.name!r}"
            )

    def _accepted(self, url: str, response: httpx.Response) -> None:
        status = response.status_code
        if status in (401, 403):
            variable = f"{self._config.KEY}.token_env={self._config.token_env or 'null'}"
            raise ModelRefused(f"{url}: {status} {words(response)[:300]}; see {variable}")
        if status in NOT_NOW or status >= 500:
            raise outage(url, response, words(response))


def openai_model(**settings: Any) -> OpenAIModel:
    """An OpenAIModel from the keys of OpenAIConfig."""
    return OpenAIModel(OpenAIConfig(**settings))
