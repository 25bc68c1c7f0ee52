"""Requests of OpenAI's clients, parsed strictly; an error names its field.

A field that would change nothing (``frequency_penalty: 0``, ``tools: []``, anything that is null) is accepted with that
value only; one that is not known is refused, and nothing is ignored but ``user``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from nemo_magic.actors.config import SamplingConfig

T = TypeVar("T")


class _FirstFault(FailFast):
    """Of a million wrong elements one is reported. Hashable, as a part of a union has to be."""

    def __hash__(self) -> int:
        return hash(_FirstFault)


_List = Annotated[list[T], _FirstFault()]

MAX_STOPS = 16
MAX_TOP = 20
MAX_CHOICES = 128

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "annotations": ([],),
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "metadata": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "suffix": ("",),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "type": ("text",),
    "typical_p": (1,),
    "use_beam_search": (False,),
}
"""Fields that ask for what is done anyway with these values, wherever they stand. A field may be null everywhere."""


class ApiError(Exception):
    """A request that is not answered. ``param``: the field it is about; ``soon``: trying again may help."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, soon: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {"Retry-After": "1"} if soon else {}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """The reply's JSON, as OpenAI has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name in cls.model_fields or not _is_neutral(name, value)}


def _is_neutral(name: str, value: Any) -> bool:
    """Whether the unknown field ``name`` changes nothing with ``value``. Raises where another value would."""
    if value is None:
        return True
    if name not in _NEUTRAL:
        return False
    # In Python, unlike in JSON, true is a 1.
    if any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]):
        return True
    would_do = " or ".join(json.dumps(neutral) for neutral in (*_NEUTRAL[name], None))
    raise PydanticCustomError(
        "neutral", "{field}: only {values} is supported here", {"field": name, "values": would_do}
    )


class _StreamOptions(_Wire):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Request(_Wire):
    """What both kinds of request have. ``top_k`` is not OpenAI's; −1 or 0: all tokens."""

    model: str
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    stop: str | _List[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None

    @property
    def choices(self) -> int:
        """Responses to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def streams_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        """Texts that end a response. Raises ApiError for an empty one or too many."""
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        if "" in stops or len(stops) > MAX_STOPS:
            raise ApiError(400, f"stop: takes at most {MAX_STOPS} strings, none of them empty", "stop")
        return stops

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are drawn; temperature 0 is greedy. Raises what ``stops`` raises."""
        greedy = self.temperature == 0
        return SamplingConfig(
            temperature=1.0 if greedy or self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            use_greedy=greedy,
            end_strings=self.stops,
        )


class CompletionRequest(_Request):
    """POST /v1/completions. ``logprobs``: how many of the likeliest tokens come with each position."""

    prompt: str | _List[str] | _List[int] | _List[_List[int]]
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    echo: bool | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _best_is_all(self) -> CompletionRequest:
        if self.best_of not in (None, self.choices):
            raise PydanticCustomError(
                "neutral", "best_of: only n={n} of them are generated, and none is left out", {"n": self.choices}
            )
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry a prompt. Raises ApiError where there are none."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt: is empty", "prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class _Part(_Wire):
    type: Literal["text"]
    text: str


class _Format(_Wire):
    type: Literal["text"]


class ChatMessage(_Wire):
    """A message of a chat; of OpenAI's content parts only texts are accepted."""

    role: Literal["system", "user", "assistant"]
    content: str | _List[_Part]

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: _List[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    response_format: _Format | None = None

    @property
    def limit(self) -> int | None:
        """Tokens of the response at most, by either of its names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


R = TypeVar("R", bound=_Request)


def parse(kind: type[R], body: bytes) -> R:
    """The request. Raises ApiError naming the first wrong field, without its value: prompts belong in no log."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [str(part) for part in fault["loc"]]
    field = where[0] if where else None
    if fault["type"] == "neutral":
        name = fault["msg"].partition(":")[0]
        raise ApiError(400, ".".join([*where, fault["msg"]]), where[0] if where else name)
    if fault["type"] == "extra_forbidden":
        raise ApiError(400, f"{'.'.join(where)}: there is no such field here", field)
    if field is None or fault["type"].startswith("json"):
        raise ApiError(400, f"the body is no JSON object: {fault['msg']}")
    raise ApiError(400, f"{'.'.join(where)}: {fault['msg']}", field)
