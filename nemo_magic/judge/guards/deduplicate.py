"""Between a guard and its model: a question that is in flight, or was answered before, is not asked again.

This is the only coalescing of questions in flight; ``judge/cache.py`` has the answers on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from nemo_magic.judge.cache import Cache
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.models.base import Model, Question
from nemo_magic.judge.telemetry import NO_TELEMETRY, Telemetry

T = TypeVar("T")


class DeduplicatingModel(Generic[T]):
    """Asks ``model`` for the guard ``name``, whose prompts and grammar are those of the version ``grammar``.

    ``parse`` reads a text or raises ValueError. Only a text that could be read is cached; any other is asked for anew.
    """

    def __init__(
        self, name: str, grammar: str, model: Model, cache: Cache | None, parse: Callable[[Question, str], T]
    ) -> None:
        self.telemetry: Telemetry = NO_TELEMETRY
        self._name = name
        self._grammar = grammar
        self._model = model
        self._cache = cache
        self._parse = parse
        self._in_flight: dict[Question, asyncio.Task[T | Exception]] = {}
        self._waiters = Counter[asyncio.Task[T | Exception]]()

    def set_telemetry(self, telemetry: Telemetry) -> None:
        """Count the work, the model's and the cache's too, with ``telemetry`` from now on."""
        self.telemetry = self._model.telemetry = telemetry
        if self._cache is not None:
            self._cache.telemetry = telemetry

    async def ask(
        self, questions: Sequence[Question], fresh: Collection[Question] = ()
    ) -> dict[Question, T | Exception]:
        """The opinion on each distinct question, or the error; ``fresh`` ones are not looked up in the cache.

        A question is cancelled with the last caller that waits for it.
        """
        distinct = dict.fromkeys(questions)
        new = [question for question in distinct if question not in self._in_flight]
        for kind, n in Counter(question.kind for question in questions).items():
            self.telemetry.count("questions", n, guard=self._name, kind=kind)
        if coalesced := len(questions) - len(new):
            self.telemetry.count("coalesced", coalesced, guard=self._name)
        # One look-up for all; the same question of another caller meanwhile waits for the same task.
        cached = asyncio.create_task(self._look_up(new, fresh)) if self._cache is not None else None
        for question in new:
            self._in_flight[question] = task = asyncio.create_task(self._answer(question, cached))
            task.add_done_callback(partial(self._forget, question))
        tasks = {question: self._in_flight[question] for question in distinct}
        self._waiters.update(tasks.values())
        try:
            if tasks:
                await asyncio.wait(tasks.values())
        finally:
            for question, task in tasks.items():
                self._waiters[task] -= 1
                if not self._waiters[task]:
                    del self._waiters[task]
                    task.cancel()  # nobody waits for it, if it is not done
                    self._forget(question, task)
        closed = GuardUnavailable("the guard is being closed")
        return {question: closed if task.cancelled() else task.result() for question, task in tasks.items()}

    async def close(self) -> None:
        """Cancel what is in flight and close the cache."""
        pending = list(self._in_flight.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if self._cache is not None:
            await self._cache.close()

    def _forget(self, question: Question, task: asyncio.Task[T | Exception]) -> None:
        if self._in_flight.get(question) is task:
            del self._in_flight[question]

    async def _answer(self, question: Question, cached: asyncio.Task[Mapping[Question, str]] | None) -> T | Exception:
        if cached is not None and (text := (await asyncio.shield(cached)).get(question)) is not None:
            try:
                opinion = self._parse(question, text)
            except Exception:
                pass  # written by a grammar that read more: as good as not cached
            else:
                self.telemetry.count("cache_hits", guard=self._name)
                return opinion
        began = time.monotonic()
        self.telemetry.count("model_calls", guard=self._name)
        try:
            text = await self._model.complete(question.sent, question.max_tokens, question.schema)
        except Exception as error:
            self.telemetry.count("guard_errors", guard=self._name, kind=type(error).__name__)
            return error
        self.telemetry.observe("model_seconds", time.monotonic() - began, guard=self._name)
        try:
            opinion = self._parse(question, text)
        except Exception as error:
            self.telemetry.count("unparsed", guard=self._name, kind=question.kind)
            return error
        if self._cache is not None:
            self._cache.put(self._key(question), text)
        return opinion

    async def _look_up(self, questions: Sequence[Question], fresh: Collection[Question]) -> Mapping[Question, str]:
        """The texts in the cache, by question; none for ``fresh`` ones."""
        keys = {self._key(question): question for question in questions if question not in fresh}
        try:
            texts = await self._cache.get(list(keys)) if self._cache is not None and keys else {}
        except RuntimeError:  # it was closed meanwhile
            return {}
        return {keys[key]: text for key, text in texts.items()}

    def _key(self, question: Question) -> bytes:
        """A digest of everything that decides what the answer is and means."""
        sent = question.sent
        content = sent if isinstance(sent, str) else [[message.role, message.content] for message in sent]
        model = self._model
        identity = [self._name, self._grammar, model.name, model.revision, question.kind, question.max_tokens, content]
        if question.schema is not None:
            identity.append(question.schema)
        return hashlib.sha256(json.dumps(identity).encode()).digest()
