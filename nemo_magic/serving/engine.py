"""Batches of rows, answered by all ranks together: rank 0 hands each batch to the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_magic.actors.config import LengthConfig, SamplingConfig
from nemo_magic.actors.sampling import StopConditions
from nemo_magic.rl.batch import DUMMY, Row, microbatches

if TYPE_CHECKING:
    from nemo_magic.actors.actor import MagicActor
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.generation import Generator


@dataclass(frozen=True)
class GenerationRequest:
    """A row: ``ids`` are read, up to ``max_tokens`` more are said. ``top``: the likeliest tokens to tell at each
    position, beside the log-probability of the row's own; None: no log-probabilities are wanted."""

    ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingConfig
    seed: int
    top: int | None = None

    @property
    def peeks(self) -> bool:
        """Whether the pass that scores the row says all that is to be said: one token at temperature 0."""
        return self.top is not None and self.max_tokens == 1 and self.sampling.use_greedy


@dataclass(frozen=True)
class GenerationResult:
    """``response``: the ids that were said, what ended them included; ``finished``: whether anything ended them.

    ``logprobs``: in nats at temperature 1, one for each id of row and response, None for the first, which nothing
    precedes; ``top``: (id, log-probability) of the likeliest there. Both are empty where none were wanted.
    """

    response: tuple[int, ...]
    finished: bool
    logprobs: tuple[float | None, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class ServingEngine:
    """One actor and its generator. Every rank of the world calls with the same jobs, and learns all answers."""

    def __init__(self, actor: MagicActor, generator: Generator, world: World) -> None:
        self._actor, self._generator, self._world = actor, generator, world

    @property
    def positions(self) -> int:
        """Tokens that prompt and response may have together."""
        return int(self._actor.cfg.encoder_seq_length)

    def answer(self, jobs: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """One answer per job, in order; data-parallel ranks take turns."""
        size = self._world.dp_size
        found: list[GenerationResult | None] = [None] * len(jobs)
        for rank, part in enumerate(self._world.gather_data_parallel(self._answer(jobs[self._world.dp_rank :: size]))):
            found[rank::size] = part
        return [answer for answer in found if answer is not None]

    def _answer(self, jobs: Sequence[GenerationRequest]) -> list[GenerationResult]:
        answers = self._said(jobs)
        wanted = [i for i, job in enumerate(jobs) if job.top is not None]
        scores = self._scores(
            [jobs[i].ids + answers[i].response for i in wanted],
            max((jobs[i].top or 1) for i in wanted) if wanted else 1,
        )
        for i, (logprobs, top) in zip(wanted, scores, strict=True):
            answers[i] = self._scored(jobs[i], answers[i], logprobs, top)
        return answers

    def _said(self, jobs: Sequence[GenerationRequest]) -> list[GenerationResult]:
        answers = [GenerationResult((), False)] * len(jobs)
        alike: dict[str, list[int]] = defaultdict(list)
        for i, job in enumerate(jobs):
            if job.max_tokens and not job.peeks:
                alike[f"{job.max_tokens} {job.sampling}"].append(i)
        if not alike:
            return answers
        self._generator.load(self._actor)
        try:
            for group in alike.values():
                first = jobs[group[0]]
                limits = LengthConfig(max_length=first.max_tokens, min_length=0)
                prompts, seeds = [jobs[i].ids for i in group], [jobs[i].seed for i in group]
                said = self._generator.generate(prompts, seeds, first.sampling, limits)
                for i, completion in zip(group, said, strict=True):
                    answers[i] = GenerationResult(completion.response_ids, completion.finished)
        finally:
            self._generator.pause()
        return answers

    def _scores(
        self, rows: Sequence[tuple[int, ...]], top: int
    ) -> list[tuple[list[float], list[list[tuple[int, float]]]]]:
        """Of each row, log-probabilities of all ids but the first, and the ``top`` likeliest after each id."""
        if not rows:
            return []
        cfg = self._actor.cfg
        # Two columns at least: of one token nothing is scored.
        multiple = 2 * (cfg.tensor_model_parallel_size if cfg.sequence_parallel else 1)
        batches = microbatches(
            [Row(row[:1], row[1:]) for row in rows],
            min(len(rows), cfg.micro_batch_size),
            self._actor.chat.pad_id,
            pad_to_multiple=multiple,
        )
        found: list[tuple[list[float], list[list[tuple[int, float]]]]] = [([], [])] * len(rows)
        for batch, scored in zip(batches, self._actor.ranked_logprobs(batches, top), strict=True):
            own, values, ids = (part.tolist() for part in scored)
            for r, index in enumerate(batch.row_index.tolist()):
                if index != DUMMY:
                    size = len(rows[index])
                    likeliest = [
                        list(zip(*pair, strict=True)) for pair in zip(ids[r][:size], values[r][:size], strict=True)
                    ]
                    found[index] = own[r][: size - 1], likeliest
        return found

    def _scored(
        self,
        job: GenerationRequest,
        said: GenerationResult,
        logprobs: Sequence[float],
        top: Sequence[Sequence[tuple[int, float]]],
    ) -> GenerationResult:
        response, finished, own = said.response, said.finished, [None, *logprobs]
        if job.peeks:
            index, logprob = top[-1][0]
            response = (index,)
            own.append(logprob)
            stops = StopConditions.of(self._actor.chat, job.sampling.end_strings, "cpu")
            finished = stops.end_of(self._actor.chat, response) is not None
        # What stands at a position is told by the position before it.
        before: list[tuple[tuple[int, float], ...]] = [(), *(tuple(each[: job.top]) for each in top)]
        return GenerationResult(response, finished, tuple(own), tuple(before[: len(own)]))
