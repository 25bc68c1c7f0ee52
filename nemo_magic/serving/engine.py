"""Batches of requests, answered by all ranks together: rank 0 hands each batch to the others."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_magic.actors.config import LengthConfig, SamplingConfig
from nemo_magic.actors.sampling import StopConditions
from nemo_magic.rl.batch import DUMMY, Row, microbatches

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.generation import Generator
    from nemo_magic.actors.protocol import Actor


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, ``ids``, and how to continue it by up to ``max_tokens``.

    ``top``: how many of the likeliest tokens are returned for each position, beside the log-probability of its own;
    None: no log-probabilities are returned.
    """

    ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingConfig
    seed: int
    top: int | None = None

    @property
    def scores_only(self) -> bool:
        """Whether the scoring pass alone yields the response: one token at temperature 0."""
        return self.top is not None and self.max_tokens == 1 and self.sampling.use_greedy


@dataclass(frozen=True)
class GenerationResult:
    """``response``: the generated ids, the end token included; ``finished``: False where the length limit cut them.

    ``logprobs``: in nats at temperature 1, one for each id of row and response, None for the first, which nothing
    precedes; ``top``: (id, log-probability) of the likeliest there. Both are empty where none were asked for.

    ``finite``: False where the model's logits are not, so that the rest means nothing.
    """

    response: tuple[int, ...]
    finished: bool
    logprobs: tuple[float | None, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    finite: bool = True


LOWEST_LOGPROB = -9999.0
"""What stands for a token that cannot come, as at OpenAI: JSON has no infinity."""

_NOT_FINITE = GenerationResult((), False, finite=False)


class ServingEngine:
    """One actor and its generator. Every rank calls with the same requests and gets all results."""

    def __init__(self, actor: Actor, generator: Generator, world: World) -> None:
        self._actor, self._generator, self._world = actor, generator, world

    @property
    def positions(self) -> int:
        """Tokens that prompt and response may have together."""
        return int(self._actor.cfg.encoder_seq_length)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """One result per request, in order; the requests are dealt to the data-parallel ranks in turn."""
        size = self._world.dp_size
        results: list[GenerationResult | None] = [None] * len(requests)
        for rank, part in enumerate(
            self._world.gather_data_parallel(self._compute(requests[self._world.dp_rank :: size]))
        ):
            results[rank::size] = part
        return [result for result in results if result is not None]

    def _compute(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        results = self._generate(requests)
        scored = [i for i, request in enumerate(requests) if request.top is not None and results[i].finite]
        scores = self._scores(
            [requests[i].ids + results[i].response for i in scored],
            max((requests[i].top or 1) for i in scored) if scored else 1,
        )
        for i, (logprobs, top) in zip(scored, scores, strict=True):
            results[i] = self._add_scores(requests[i], results[i], logprobs, top)
        return results

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        results = [GenerationResult((), False)] * len(requests)
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            if request.max_tokens and not request.scores_only:
                groups[f"{request.max_tokens} {request.sampling}"].append(i)
        if not groups:
            return results
        self._generator.load(self._actor)
        try:
            for group in groups.values():
                for i, result in zip(group, self._continue([requests[i] for i in group]), strict=True):
                    results[i] = result
        finally:
            self._generator.pause()
        return results

    def _continue(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Responses to requests of one sampling and one limit."""
        limits = LengthConfig(max_length=requests[0].max_tokens, min_length=0)
        prompts, seeds = [request.ids for request in requests], [request.seed for request in requests]
        try:
            completions = self._generator.generate(prompts, seeds, requests[0].sampling, limits)
        except FloatingPointError:
            # Of one row, perhaps: the others have their answer.
            return [_NOT_FINITE] if len(requests) == 1 else [self._continue([one])[0] for one in requests]
        return [
            GenerationResult(one.response_ids, one.finished) if all(map(math.isfinite, one.logprobs)) else _NOT_FINITE
            for one in completions
        ]

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
        scores: list[tuple[list[float], list[list[tuple[int, float]]]]] = [([], [])] * len(rows)
        for batch, tensors in zip(batches, self._actor.ranked_logprobs(batches, top), strict=True):
            own, values, ids = (part.tolist() for part in tensors)
            for r, index in enumerate(batch.row_index.tolist()):
                if index != DUMMY:
                    size = len(rows[index])
                    likeliest = [
                        list(zip(*pair, strict=True)) for pair in zip(ids[r][:size], values[r][:size], strict=True)
                    ]
                    scores[index] = own[r][: size - 1], likeliest
        return scores

    def _add_scores(
        self,
        request: GenerationRequest,
        result: GenerationResult,
        logprobs: Sequence[float],
        top: Sequence[Sequence[tuple[int, float]]],
    ) -> GenerationResult:
        response, finished, own = result.response, result.finished, [None, *logprobs]
        if request.scores_only:
            index, logprob = top[-1][0]
            response = (index,)
            own.append(logprob)
        if any(value is not None and not value < math.inf for value in own):
            return _NOT_FINITE
        own = [None if value is None else max(value, LOWEST_LOGPROB) for value in own]
        if request.scores_only:
            stops = StopConditions.of(self._actor.chat, request.sampling.end_strings, "cpu")
            finished = stops.end_of(self._actor.chat, response) is not None
        # The position before a token predicts it. What cannot be chosen is no candidate: a small vocabulary has fewer
        # than were asked for.
        before: list[tuple[tuple[int, float], ...]] = [
            (),
            *(tuple(pair for pair in each[: request.top] if pair[1] > -math.inf) for each in top),
        ]
        return GenerationResult(response, finished, tuple(own), tuple(before[: len(own)]))
