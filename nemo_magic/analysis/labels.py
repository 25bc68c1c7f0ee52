"""The strategies of attacks: decoded in the sandbox, elsewhere named by a model with a rubric."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.config.analysis import LabelsConfig
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards.strategies import StrategyRubric
from nemo_magic.judge.models import build_model
from nemo_magic.judge.models.base import Model
from nemo_magic.judge.models.openai import OpenAIConfig, OpenAIModel
from nemo_magic.net.tasks import gather
from nemo_magic.report.conversations import NO_REQUEST
from nemo_magic.rollout.response_cache import ResponseCache, cache_key
from nemo_magic.sandbox.language import parse
from nemo_magic.sandbox.world import SandboxWorld

UNKNOWN = "unknown"
_LOG_EVERY = 10.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class StrategyLabel:
    """The strategy of an attack. ``parts``: the strategies that it combines (a hybrid has several; none at all is a
    strategy too), None where that is unknown; ``problem``: why."""

    name: str
    parts: frozenset[str] | None
    problem: str | None = None


class LabelRequest(NamedTuple):
    """An attack whose strategies a model is asked for: its seed and its messages."""

    seed: str
    messages: tuple[str, ...]


def decode_label(world: SandboxWorld, text: str) -> StrategyLabel:
    """The strategy of a rewrite of the sandbox, exactly. The order of frames is no part of a combination."""
    request = parse(world, text)
    if request is None:
        return StrategyLabel(NO_REQUEST, None, "what was written is no request of the sandbox")
    return StrategyLabel(request.strategy.name, frozenset(request.strategy.parts))


def label_of_ids(rubric: StrategyRubric, ids: Sequence[int]) -> StrategyLabel:
    """The label of a set of ids, rising. None of the strategies combines nothing."""
    names = [rubric.taxonomy[id].name for id in ids]
    return StrategyLabel(
        " + ".join(names), frozenset(name for id, name in zip(ids, names, strict=True) if id != rubric.none)
    )


def label_of_column(rubric: StrategyRubric, cell: str) -> StrategyLabel | None:
    """The label that an attack pool's column gives: ids joined by ``_``, or a strategy's name; None for anything else.

    Whether a hybrid is written ``0_18`` or ``18_0`` makes no difference.
    """
    if re.fullmatch(r"\d+(_\d+)*", cell):
        ids = sorted({int(id) for id in cell.split("_")})
        alone = rubric.none not in ids or len(ids) == 1
        return label_of_ids(rubric, ids) if ids[-1] <= rubric.none and alone else None
    names = {_normalize(one.name): id for id, one in enumerate(rubric.taxonomy)}
    id = names.get(_normalize(cell))
    return None if id is None else label_of_ids(rubric, [id])


class LabelModelConfig(OpenAIConfig):
    """Where the model that names strategies is served: the keys of a guard's model."""

    KEY = "analysis.labels.model"
    NOUN = "labelling model"


def labelling_model(config: LabelsConfig) -> Model:
    """A server has two minutes to be there, unless ``start_timeout`` is given: it has to run already.

    Raises ValueError, naming the key, for settings that no model has.
    """
    settings = dict(config.model)
    if settings.pop("kind", "openai") == "openai":
        try:
            return OpenAIModel(LabelModelConfig(**{"start_timeout": 120.0} | settings))
        except TypeError as error:
            raise ValueError(f"analysis.labels.model={dict(config.model)}: {error}") from error
    try:
        return build_model(config.model)
    except ValueError as error:
        raise ValueError(str(error).replace(OpenAIConfig.KEY, LabelModelConfig.KEY)) from error


class Labeller:
    """Has ``model`` name strategies by ``rubric``, and caches its answers by rubric and model.

    An answer outside the rubric's grammar is cached as well: at temperature 0 it would be the same again. An error of
    the server is not.
    """

    def __init__(
        self,
        config: LabelsConfig,
        rubric: StrategyRubric,
        model: Model,
        cache: ResponseCache,
        log: Callable[[str], None],
    ) -> None:
        self._config = config
        self._rubric = rubric
        self._model = model
        self._cache = cache
        self._log = log
        self._schema = rubric.schema() if model.takes_schema else None
        self.new_questions = 0
        """Questions that the model was asked: their answers were not in the cache."""

    @property
    def name(self) -> str:
        """Rubric, model and revision: a part of every cache key."""
        return f"strategies@{self._rubric.grammar}:{self._model.name}:{self._model.revision}"

    def label(self, attacks: Sequence[LabelRequest]) -> list[StrategyLabel]:
        """A label for each attack, in order.

        Raises:
            AnalysisError: the model cannot be loaded, or not be asked now. Its answers so far are cached.
        """
        return asyncio.run(self._label(attacks))

    async def _label(self, attacks: Sequence[LabelRequest]) -> list[StrategyLabel]:
        questions: dict[str, LabelRequest] = {self._key(attack): attack for attack in attacks}
        failed: dict[str, str] = {}
        try:
            # Some models know what they are only once they started; with all answers there, none has to start.
            if self._cache.missing(questions):
                await self._start_model()
                questions = {self._key(attack): attack for attack in attacks}
            missing, last_log = self._cache.missing(questions), time.monotonic()
            for start in range(0, len(missing), self._config.chunk_size):
                chunk = missing[start : start + self._config.chunk_size]
                answers = await gather(self._answer(questions[key]) for key in chunk)
                new = dict(zip(chunk, answers, strict=True))
                failed |= {key: answer["failed"] for key, answer in new.items() if "failed" in answer}
                self._cache.add({key: answer for key, answer in new.items() if key not in failed})
                if time.monotonic() - last_log > _LOG_EVERY:
                    last_log = time.monotonic()
                    self._log(f"{start + len(chunk)} of {len(missing)} attacks are labelled")
        except GuardUnavailable as error:
            done = len(questions) - len(self._cache.missing(questions))
            raise AnalysisError(
                f"{error}; the labels of {done} of {len(questions)} different attacks are written down, "
                "and the same command goes on from there"
            ) from error
        finally:
            await self._model.close()
        known = {key: self._read(self._cache[key]) for key in questions if key in self._cache}
        known |= {key: StrategyLabel(UNKNOWN, None, problem) for key, problem in failed.items()}
        return [known[self._key(attack)] for attack in attacks]

    async def _start_model(self) -> None:
        try:
            await self._model.start()
        except (OSError, ValueError) as error:
            raise AnalysisError(f"analysis.labels.model cannot be loaded: {error}") from error

    async def _answer(self, attack: LabelRequest) -> dict[str, Any]:
        try:
            sent = self._rubric.render(attack.seed, attack.messages)
        except ValueError as error:
            return {"problem": f"not asked: {error}"}
        self.new_questions += 1
        try:
            text = await self._model.complete(sent, self._config.max_tokens, self._schema)
        except ValueError as error:
            return {"failed": f"no answer: {error}"}
        try:
            return {"ids": self._rubric.parse(text)}
        except ValueError as error:
            return {"problem": f"not understood: {error}"}

    def _read(self, answer: Mapping[str, Any]) -> StrategyLabel:
        if "ids" in answer:
            return label_of_ids(self._rubric, answer["ids"])
        return StrategyLabel(UNKNOWN, None, answer["problem"])

    def _key(self, attack: LabelRequest) -> str:
        held = () if self._schema is None else (self._schema,)
        return cache_key(self.name, self._config.max_tokens, attack.seed, attack.messages, *held)


def _normalize(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()
