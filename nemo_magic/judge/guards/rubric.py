"""An instruction-following model as a judge: rubrics of one's own, answered as JSON.

Each kind of question has a template; a template that is left out leaves its fields out. Texts under judgement are
filled in as JSON strings, so that none of them can end where it stands and go on as the rubric.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.game.episode import Answer, Message, Safety
from nemo_magic.judge.guards.base import Opinion, TextGuard
from nemo_magic.judge.guards.prompt_view import fill, slots
from nemo_magic.judge.guards.verdict_text import verdict_text
from nemo_magic.judge.models.base import Model, Sent
from nemo_magic.judge.protocol import Ask, JudgeItem

_KINDS: dict[str, dict[str, Ask]] = {
    "prompt": {"harm": Ask.PROMPT_SAFETY},
    "response": {"harm": Ask.RESPONSE_SAFETY, "refusal": Ask.REFUSAL, "usefulness": Ask.HELPFUL},
    "intent": {"intent": Ask.INTENT_PRESERVED},
}
# The prompt's own label is asked from the prompt only: it is the same whatever was replied.
_SLOTS = {"prompt": {"prompt"}, "response": {"prompt", "response", "conversation"}, "intent": {"seed", "prompt"}}
_NEEDED = {"prompt": {"prompt"}, "response": {"response"}, "intent": {"seed", "prompt"}}
_HARM = {level.value: level for level in (Safety.SAFE, Safety.CONTROVERSIAL, Safety.UNSAFE)}
_YES_NO = {answer.value: answer for answer in (Answer.YES, Answer.NO)}
_FENCED = re.compile(r"```(?:json)?\n(.*)\n```", re.DOTALL)
_LONGEST = 2000
MARKERS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>")


class Rubric(TextGuard):
    """``templates``: for ``prompt``, ``response`` and ``intent``, the user message; ``system``: the system message, if
    there is one. Slots: ``{{prompt}}``, ``{{response}}``, ``{{conversation}}``, ``{{seed}}``.

    The model has to answer with one JSON object of exactly these keys: for a prompt ``harm``, one of safe,
    controversial, unsafe; for a response ``harm``, ``refusal`` and ``usefulness``, the latter yes or no; for the intent
    ``intent``, yes or no. A model that takes JSON schemas is held to that by one. ``markers``: what structures the
    model's own chat template, which no judged text may contain.
    """

    name = "rubric"

    def __init__(
        self,
        model: Model | Mapping[str, Any],
        templates: Mapping[str, str],
        cache: Mapping[str, Any] | None = None,
        max_tokens: int = 128,
        markers: Sequence[str] = MARKERS,
    ) -> None:
        for kind in (known := [kind for kind in templates if kind != "system"]):
            if kind not in _KINDS:
                raise ValueError(f"judge.guard_config.templates.{kind} must be one of: system, {', '.join(_KINDS)}")
            used = slots(templates[kind])
            if not _NEEDED[kind] <= used <= _SLOTS[kind]:
                raise ValueError(
                    f"judge.guard_config.templates.{kind} has the slots {sorted(used)}; it takes "
                    f"{sorted(_SLOTS[kind])} and needs {sorted(_NEEDED[kind])}"
                )
        if not known:
            raise ValueError(f"judge.guard_config.templates is empty; it takes any of: {', '.join(_KINDS)}")
        self.kinds = {kind: frozenset(_KINDS[kind].values()) for kind in _KINDS if kind in templates}
        # A rubric is a guard of its own: its words are part of what it is.
        self.grammar = "4." + hashlib.sha256(json.dumps(sorted(templates.items())).encode()).hexdigest()[:8]
        self.max_tokens = max_tokens
        self.markers = tuple(markers)
        self._templates = dict(templates)
        super().__init__(model, cache)

    @classmethod
    def answers_of(cls, config: Mapping[str, Any]) -> frozenset[Ask]:
        """The fields of the kinds that have a template."""
        return frozenset(ask for kind in config.get("templates", ()) for ask in _KINDS.get(kind, {}).values())

    def render(self, kind: str, item: JudgeItem) -> Sent:
        """The kind's template, filled in. Raises ValueError if the response or the seed that it needs is missing."""
        texts: dict[str, Any] = {"prompt": item.prompt}
        if kind == "response":
            if item.response is None:
                raise ValueError("there is no response to judge")
            messages = [{"role": message.role, "content": message.content} for message in item.conversation]
            texts |= {"response": item.response, "conversation": messages}
        elif kind == "intent":
            if item.seed is None:
                raise ValueError("there is no seed whose intent could be preserved")
            texts["seed"] = item.seed.text
        quoted = {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}
        user = Message("user", fill(self._templates[kind], quoted))
        system = self._templates.get("system")
        return (Message("system", system), user) if system else (user,)

    def schema(self, kind: str) -> Mapping[str, Any]:
        """What ``parse`` takes: exactly the kind's keys, each one of its words."""
        words = {key: {"type": "string", "enum": list(_words(key))} for key in _KINDS[kind]}
        return {"type": "object", "properties": words, "required": list(words), "additionalProperties": False}

    def parse(self, kind: str, text: str) -> Opinion:
        """Raises ValueError for a text that is not one JSON object of the kind's keys and known values."""
        keys = _KINDS[kind]
        answer = json_object(text)
        if set(answer) != set(keys):
            raise ValueError(f"the guard's JSON does not have exactly the keys {', '.join(keys)}")
        answers: dict[str, Any] = {}
        for key, field in keys.items():
            words, value = _words(key), answer[key]
            if not isinstance(value, str) or value not in words:
                raise ValueError(f"the guard's {key} is none of: {', '.join(words)}")
            answers[field.value] = words[value]
        return Opinion(**answers)


def _words(key: str) -> Mapping[str, Any]:
    return _HARM if key == "harm" else _YES_NO


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` is, bare or fenced, after the model's reasoning. Raises ValueError for anything
    else."""
    text = verdict_text(text)
    if len(text) > _LONGEST:
        raise ValueError(f"the guard's text is longer than {_LONGEST} characters")
    if (fenced := _FENCED.fullmatch(text)) is not None:
        text = fenced[1]
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("the guard's text is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("the guard's JSON is no object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("the guard's JSON has a key twice")
    return dict(pairs)
