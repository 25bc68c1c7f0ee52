"""By which strategies an attack was written: decoded in the sandbox, elsewhere as a model names them by a rubric."""

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
from nemo_magic.net.retrying_client import gather
from nemo_magic.report.conversations import NO_REQUEST
from nemo_magic.rollout.response_cache import ResponseCache, cache_key
from nemo_magic.sandbox.language import parse
from nemo_magic.sandbox.world import SandboxWorld

UNKNOWN = "unknown"
_TOLD_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class StrategyLabel:
    """``name``: what the strategy is called. ``parts``: the strategies that it combines (a hybrid has several; none at
    all is a strategy too), None where nobody can say. ``problem``: why not."""

    name: str
    parts: frozenset[str] | None
    problem: str | None = None


class LabelRequest(NamedTuple):
    """What a strategy is asked of."""

    seed: str
    messages: tuple[str, ...]


def decoded(world: SandboxWorld, text: str) -> StrategyLabel:
    """The disguise of a rewrite of the sandbox, exactly. The order of frames is no part of a combination."""
    request = parse(world, text)
    if request is None:
        return StrategyLabel(NO_REQUEST, None, "what was written is no request of the sandbox")
    return StrategyLabel(request.strategy.name, frozenset(request.strategy.parts))


def of_ids(rubric: StrategyRubric, ids: Sequence[int]) -> StrategyLabel:
    """The label of a set of ids, rising. None of the strategies combines nothing."""
    names = [rubric.taxonomy[id].name for id in ids]
    return StrategyLabel(
        " + ".join(names), frozenset(name for id, name in zip(ids, names, strict=True) if id != rubric.none)
    )


def of_column(rubric: StrategyRubric, cell: str) -> StrategyLabel | None:
    """The label that an attack pool's column gives: ids joined by ``_``, or a strategy's name; None for anything else.

    Whether a hybrid is written ``0_18`` or ``18_0`` makes no difference.
    """
    if re.fullmatch(r"\d+(_\d+)*", cell):
        ids = sorted({int(id) for id in cell.split("_")})
        alone = rubric.none not in ids or len(ids) == 1
        return of_ids(rubric, ids) if ids[-1] <= rubric.none and alone else None
    names = {_plain(one.name): id for id, one in enumerate(rubric.taxonomy)}
    found = names.get(_plain(cell))
    return None if found is None else of_ids(rubric, [found])


class LabelModelConfig(OpenAIConfig):
    """A guard's model's settings, of the model that names strategies."""

    KEY = "analysis.labels.model"
    NOUN = "labelling model"


def labelling_model(config: LabelsConfig) -> Model:
    """A server has two minutes to be there, unless ``start_timeout`` says otherwise: nobody starts one for this.

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
    """Has ``model`` name strategies by ``rubric``, and writes down what it said; what was written down is asked no
    more, until the rubric or the model is another one.

    An answer outside the rubric's grammar is written down as well: at temperature 0 it would be the same again. What
    the server made of a question, and the model did not, is not.
    """

    def __init__(
        self,
        config: LabelsConfig,
        rubric: StrategyRubric,
        model: Model,
        journal: ResponseCache,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._rubric = rubric
        self._model = model
        self._journal = journal
        self._say = say
        self.asked = 0
        """Questions that were newly asked."""

    @property
    def name(self) -> str:
        return f"strategies@{self._rubric.grammar}:{self._model.name}:{self._model.revision}"

    def label(self, attacks: Sequence[LabelRequest]) -> list[StrategyLabel]:
        """A label for each attack, in order.

        Raises:
            AnalysisError: the model cannot be asked now. What it said so far is written down.
        """
        return asyncio.run(self._label(attacks))

    async def _label(self, attacks: Sequence[LabelRequest]) -> list[StrategyLabel]:
        questions: dict[str, LabelRequest] = {self._key(attack): attack for attack in attacks}
        failed: dict[str, str] = {}
        try:
            # Some models know what they are only once they started; with all answers there, none has to start.
            if self._journal.missing(questions):
                await self._model.start()
                questions = {self._key(attack): attack for attack in attacks}
            missing, told = self._journal.missing(questions), time.monotonic()
            for start in range(0, len(missing), self._config.chunk_size):
                chunk = missing[start : start + self._config.chunk_size]
                answers = await gather(self._answer(questions[key]) for key in chunk)
                new = dict(zip(chunk, answers, strict=True))
                failed |= {key: answer["failed"] for key, answer in new.items() if "failed" in answer}
                self._journal.add({key: answer for key, answer in new.items() if key not in failed})
                if time.monotonic() - told > _TOLD_EVERY:
                    told = time.monotonic()
                    self._say(f"{start + len(chunk)} of {len(missing)} attacks are labelled")
        except GuardUnavailable as error:
            done = len(questions) - len(self._journal.missing(questions))
            raise AnalysisError(
                f"{error}; the labels of {done} of {len(questions)} different attacks are written down, "
                "and the same command goes on from there"
            ) from error
        finally:
            await self._model.close()
        known = {key: self._read(self._journal[key]) for key in questions if key in self._journal}
        known |= {key: StrategyLabel(UNKNOWN, None, problem) for key, problem in failed.items()}
        return [known[self._key(attack)] for attack in attacks]

    async def _answer(self, attack: LabelRequest) -> dict[str, Any]:
        try:
            sent = self._rubric.render(attack.seed, attack.messages)
        except ValueError as error:
            return {"problem": f"not asked: {error}"}
        self.asked += 1
        try:
            text = await self._model.complete(sent, self._config.max_tokens)
        except ValueError as error:
            return {"failed": f"no answer: {error}"}
        try:
            return {"ids": self._rubric.parse(text)}
        except ValueError as error:
            return {"problem": f"not understood: {error}"}

    def _read(self, answer: Mapping[str, Any]) -> StrategyLabel:
        if "ids" in answer:
            return of_ids(self._rubric, answer["ids"])
        return StrategyLabel(UNKNOWN, None, answer["problem"])

    def _key(self, attack: LabelRequest) -> str:
        return cache_key(self.name, self._config.max_tokens, attack.seed, attack.messages)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()
