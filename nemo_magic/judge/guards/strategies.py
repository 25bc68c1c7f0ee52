"""A rubric for another question than a guard's: by which strategies was a request reworded?

It names strategies after the run and decides no reward, so it gives no verdict. As in the rubric guard, texts are
filled in as JSON strings, a text that could speak for the model is not asked about, and an answer is one JSON object or
none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_magic.game.episode import Message
from nemo_magic.judge.guards.prompt_view import fill, slots
from nemo_magic.judge.guards.rubric import MARKERS, json_object

_SLOTS = {"strategies", "seed", "attack"}
_NEEDED = {"strategies", "attack"}
_KEYS = {"system", "strategy", "strategies"}
_OF_A_STRATEGY = {"name", "family", "definition"}


@dataclass(frozen=True, slots=True)
class StrategyDefinition:
    """An entry of a taxonomy; its id is its place there."""

    name: str
    family: str
    definition: str


class StrategyRubric:
    """``system`` may be empty; ``template`` has the slots ``{{strategies}}``, ``{{attack}}`` and, if wanted,
    ``{{seed}}``. The last of ``taxonomy`` means none of the others.

    Raises ValueError for a template or a taxonomy that cannot be asked with.
    """

    def __init__(
        self, template: str, taxonomy: Sequence[StrategyDefinition], system: str = "", markers: Sequence[str] = MARKERS
    ) -> None:
        if not _NEEDED <= (used := slots(template)) <= _SLOTS:
            raise ValueError(f"strategy has the slots {sorted(used)}; it takes {sorted(_SLOTS)}, needs attack and "
                             "strategies")  # fmt: skip
        names = [one.name for one in taxonomy]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError("strategies needs two entries at least, none of the same name as another")
        self.taxonomy = tuple(taxonomy)
        self.none = len(taxonomy) - 1
        self._template = template
        self._system = system
        self._markers = tuple(markers)
        words = json.dumps(
            [system, template, list(markers), [[one.name, one.family, one.definition] for one in taxonomy]]
        )
        self.grammar = "2." + hashlib.sha256(words.encode()).hexdigest()[:8]

    def render(self, seed: str, messages: Sequence[str]) -> tuple[Message, ...]:
        """The chat that asks about an attack of ``messages``. Raises ValueError if a text contains a marker."""
        for text in (seed, *messages):
            for marker in self._markers:
                if marker in text:
                    raise ValueError(f"a text contains {marker!r}, which structures the model's own prompt")
        listed = [f"{id}: {one.name} ({one.family}): {one.definition}" for id, one in enumerate(self.taxonomy)]
        texts = {
            "strategies": "\n".join(listed),
            "seed": json.dumps(seed, ensure_ascii=False),
            "attack": json.dumps(list(messages), ensure_ascii=False),
        }
        user = Message("user", fill(self._template, texts))
        return (Message("system", self._system), user) if self._system else (user,)

    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of an answer. ``parse`` is stricter: no id twice, and none of the strategies stands alone."""
        known = {"type": "integer", "enum": list(range(self.none + 1))}
        ids = {"type": "array", "items": known, "minItems": 1, "maxItems": self.none}
        return {
            "type": "object",
            "properties": {"strategies": ids},
            "required": ["strategies"],
            "additionalProperties": False,
        }

    def parse(self, text: str) -> tuple[int, ...]:
        """The ids that the model named, rising. Raises ValueError for anything but ``{"strategies": [ids]}`` with known
        ids, each once, and the last one alone if at all."""
        answer = json_object(text)
        if set(answer) != {"strategies"}:
            raise ValueError("the model's JSON does not have exactly the key strategies")
        ids = answer["strategies"]
        # A bool is an int, and is no id.
        if not isinstance(ids, list) or not ids or any(type(id) is not int for id in ids):
            raise ValueError("the model's strategies are no list of ids")
        if not set(ids) <= set(range(len(self.taxonomy))):
            raise ValueError(f"the model names a strategy outside 0 to {self.none}")
        if len(set(ids)) < len(ids):
            raise ValueError("the model names a strategy twice")
        if self.none in ids and len(ids) > 1:
            raise ValueError("the model names strategies, and none of them")
        return tuple(sorted(ids))


def read_strategy_rubric(path: Path) -> StrategyRubric:
    """The rubric in a YAML file: ``system`` (optional), ``strategy`` and ``strategies``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; the message names it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping) or not {"strategy", "strategies"} <= set(content) <= _KEYS:
            raise ValueError(f"it needs the keys strategy and strategies, and takes {', '.join(sorted(_KEYS))}")
        entries = content["strategies"]
        if not isinstance(entries, list):
            raise ValueError("strategies is no list")
        taxonomy = [_entry(id, entry) for id, entry in enumerate(entries)]
        return StrategyRubric(str(content["strategy"]), taxonomy, str(content.get("system") or ""))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no rubric for strategies: {error}") from error


def _entry(id: int, entry: Any) -> StrategyDefinition:
    if not isinstance(entry, Mapping) or set(entry) != _OF_A_STRATEGY:
        raise ValueError(f"strategies[{id}] needs exactly the keys {', '.join(sorted(_OF_A_STRATEGY))}")
    return StrategyDefinition(**{key: str(value) for key, value in entry.items()})
