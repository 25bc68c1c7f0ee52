"""Decoding: the ``Generator`` protocol, and native Megatron decoding behind it.

A generator belongs to the world, not to an actor: ``load(actor)`` gives it that actor's weights, and it refuses to
decode when the actor has learned since. TensorRT-LLM, which allows one engine per process, is behind the
same protocol (trtllm.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.inference_params import InferenceParams
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from nemo_magic.actors.cached_rotary import cached_rotary
from nemo_magic.actors.config import GenerationConfig, LengthConfig, SamplingConfig
from nemo_magic.actors.output_positions import output_from
from nemo_magic.actors.plain_adapters import plain_adapters
from nemo_magic.actors.sampling import (
    StopConditions,
    hits_stop_string,
    refuse_not_finite,
    sample_tokens,
    to_completion,
    uniform_draws,
)
from nemo_magic.game.episode import Completion

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor


_WORTH_COPYING = 7 / 8
"""Rows that have ended are decoded no more once this share or less is left: then their keys and values move together,
which takes about as long as attention reads them at one token."""


class StaleWeightsError(RuntimeError):
    """A generator was asked to decode with weights that are not the actor's present ones."""


class Generator(Protocol):
    """Decodes for one actor at a time. Every rank of a model-parallel group calls with the same arguments."""

    def load(self, actor: Actor) -> None:
        """Take the actor's present weights; building an engine at the first call is part of it."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        lengths: LengthConfig,
    ) -> list[Completion]:
        """One completion per prompt, in order.

        ``seeds`` holds one 64-bit seed per row: a row's sample depends on its prompt, its seed and the weights only. In
        half precision logits are rounded as the shape of the batch has it, and a draw between two tokens may fall to
        either side: there, on the rows beside it too.

        Raises:
            StaleWeightsError: when no actor is loaded, or the loaded one has changed since ``load``.
            NotFiniteError: its logits are not finite.
        """

    def pause(self) -> None:
        """The actor may be trained again; an engine and its weights may stay where they are."""

    def release(self) -> None:
        """``pause``, and give back the memory that decoding held, so that training can have it."""

    def drain(self) -> dict[str, float]:
        """Metrics since the last call, the same names on every rank (docs/metrics.md)."""

    def close(self) -> None:
        """Free everything; nothing is decoded any more."""


def refuse_too_long(actor: Actor, prompts: Sequence[Sequence[int]], lengths: LengthConfig) -> None:
    """Raises ValueError when a prompt and ``lengths.max_length`` together exceed ``model.encoder_seq_length``."""
    longest = max(map(len, prompts), default=0)
    if longest + lengths.max_length > actor.cfg.encoder_seq_length:
        raise ValueError(
            f"a prompt of {longest} tokens and length_params.max_length={lengths.max_length} exceed "
            f"model.encoder_seq_length={actor.cfg.encoder_seq_length}"
        )


class NativeGenerator:
    """Decoding by the Megatron model itself, with its key/value cache; works at any TP × PP.

    Rows are decoded in cohorts of similar prompt length: a cohort is prefilled up to its shortest prompt, equal ones
    once, and goes on token by token, longer prompts being fed where they still have tokens. Positions are absolute and
    no padding precedes a prompt, so a causal mask is all that attention needs, whatever kernel computes it.
    """

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config
        self._actor: Actor | None = None
        self._version = -1

    def load(self, actor: Actor) -> None:
        """Decode with the actor's own weights; there is nothing to copy."""
        self.pause()
        actor.prepare_for_inference()
        self._actor, self._version = actor, actor.weights_version

    def pause(self) -> None:
        """Leave inference mode."""
        if self._actor is not None:
            self._actor.finish_inference()
        self._actor = None

    def release(self) -> None:
        """``pause``: the key/value cache lives for one ``generate`` only."""
        self.pause()

    def drain(self) -> dict[str, float]:
        """No metrics of its own."""
        return {}

    def close(self) -> None:
        """``pause``."""
        self.pause()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        lengths: LengthConfig,
    ) -> list[Completion]:
        """As ``Generator.generate``.

        Raises:
            StaleWeightsError: when no actor is loaded, or the loaded one has changed since ``load``.
            ValueError: when a prompt and ``lengths.max_length`` together exceed ``model.encoder_seq_length``.
        """
        actor = self._loaded()
        refuse_too_long(actor, prompts, lengths)
        device = torch.cuda.current_device()
        stops = StopConditions.of(actor.chat, sampling.end_strings, device)
        completions: list[Completion | None] = [None] * len(prompts)
        for cohort in self._cohorts([len(p) for p in prompts]):
            rows = [list(prompts[i]) for i in cohort]
            uniforms = uniform_draws([seeds[i] for i in cohort], lengths.max_length, device)
            with cached_rotary(actor), plain_adapters(actor):
                decoded = _decode(actor, rows, uniforms, sampling, lengths, stops)
            for i, completion in zip(cohort, decoded, strict=True):
                completions[i] = completion
        return [c for c in completions if c is not None]

    def _loaded(self) -> Actor:
        if self._actor is None:
            raise StaleWeightsError("generate() before load(actor)")
        if self._actor.weights_version != self._version:
            raise StaleWeightsError(
                f"the {self._actor.role} is at weights version {self._actor.weights_version}, the generator holds "
                f"{self._version}: call load(actor) after an update"
            )
        return self._actor

    def _cohorts(self, prompt_lengths: Sequence[int]) -> Iterator[list[int]]:
        cohort: list[int] = []
        for i in sorted(range(len(prompt_lengths)), key=prompt_lengths.__getitem__):
            full = len(cohort) == self._config.batch_size
            if cohort and (full or prompt_lengths[i] - prompt_lengths[cohort[0]] > self._config.max_prompt_spread):
                yield cohort
                cohort = []
            cohort.append(i)
        if cohort:
            yield cohort


def _decode(
    actor: Actor,
    prompts: Sequence[list[int]],
    uniforms: torch.Tensor,
    sampling: SamplingConfig,
    limits: LengthConfig,
    stops: StopConditions,
) -> list[Completion]:
    device = torch.cuda.current_device()
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)
    first, longest = int(prompt_lengths.min()), int(prompt_lengths.max())
    total = longest + limits.max_length
    padded = [prompt + [actor.chat.pad_id] * (total - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(padded, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(prompts), total, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    response_lengths = torch.zeros_like(prompt_lengths)

    cache = InferenceParams(max_batch_size=len(prompts), max_sequence_length=total)
    logits = _prefill(actor, tokens[:, :first], cache)
    decoded = torch.arange(len(prompts), device=device)  # rows of the cache and of the logits
    for column in range(first, total):
        produced = column - prompt_lengths  # response tokens of this row so far; negative while its prompt is still fed
        live = (produced >= 0) & (produced < limits.max_length) & ~ended
        draw = uniforms.gather(1, produced.clamp(0, limits.max_length - 1)[:, None])
        ids, chosen = torch.zeros_like(tokens[:, column]), torch.zeros_like(logprobs[:, column])
        ids[decoded], chosen[decoded] = _sample_on_last_stage(
            actor, logits, draw[decoded], sampling, banned=(produced < limits.min_length)[decoded], stops=stops
        )
        tokens[:, column] = torch.where(live, ids, tokens[:, column])
        logprobs[:, column] = chosen * live
        response_lengths += live
        ended |= live & torch.isin(ids, stops.ids)
        if stops.strings:
            ended |= live & hits_stop_string(actor.chat, tokens, prompt_lengths, response_lengths, live, stops)
        unfinished = (~ended & (produced + 1 < limits.max_length))[decoded].nonzero().flatten()
        if not len(unfinished):
            break
        if len(unfinished) <= _WORTH_COPYING * len(decoded):
            decoded = decoded[unfinished]
            _select(cache, unfinished, column)
        logits = _next_logits(actor, tokens[decoded, column : column + 1], column, cache)
    rows = zip(prompts, tokens.tolist(), logprobs.tolist(), response_lengths.tolist(), ended.tolist(), strict=True)
    return [to_completion(actor.chat, *row, stops) for row in rows]


def _prefill(actor: Actor, tokens: torch.Tensor, cache: InferenceParams) -> torch.Tensor | None:
    """``_next_logits`` after the beginnings ``tokens`` [rows, S] of all prompts. What several rows begin with, as the
    samples of a group do, is read once and its keys and values are copied."""
    distinct, inverse = torch.unique(tokens, dim=0, return_inverse=True)
    if len(distinct) == len(tokens):
        return _next_logits(actor, tokens, 0, cache)
    cache.max_batch_size = len(distinct)
    logits = _next_logits(actor, distinct, 0, cache)
    _select(cache, inverse, tokens.size(1))
    return None if logits is None else logits[inverse]


def _select(cache: InferenceParams, rows: torch.Tensor, filled: int) -> None:
    """Let the cache hold ``rows`` [any number] of what it holds; keys and values of ``filled`` tokens are known."""
    cache.max_batch_size = len(rows)
    for layer, kept in cache.key_value_memory_dict.items():
        copies = []
        for part in kept:
            copy = part.new_empty(len(part), len(rows), *part.shape[2:])
            copy[:filled] = part[:filled, rows]
            copies.append(copy)
        cache.key_value_memory_dict[layer] = tuple(copies)


def _next_logits(actor: Actor, tokens: torch.Tensor, offset: int, cache: InferenceParams) -> torch.Tensor | None:
    """[rows, padded vocabulary] logits after the last of ``tokens`` [rows, S]; None but on the last pipeline stage."""
    rows, size = tokens.shape
    cache.sequence_len_offset = offset
    positions = torch.arange(offset, offset + size, device=tokens.device).expand(rows, size)

    def forward(model: torch.nn.Module) -> torch.Tensor:
        with output_from(actor, -1):
            output: torch.Tensor = model(tokens, positions, None, inference_params=cache, runtime_gather_output=True)
            return output

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return forward(actor.model)[:, -1]

    def step(_: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        return forward(model), lambda output, non_loss_data=True: output[:, -1]

    last = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=None,
        model=actor.model,
        num_microbatches=1,
        forward_only=True,
        seq_length=size,
        micro_batch_size=rows,
        collect_non_loss_data=True,
    )
    return last[0] if last else None


def _sample_on_last_stage(
    actor: Actor,
    logits: torch.Tensor | None,
    draw: torch.Tensor,
    sampling: SamplingConfig,
    banned: torch.Tensor,
    stops: StopConditions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample on the last pipeline stage; every rank of the model-parallel group receives the same ids and
    log-probabilities [rows].

    Raises:
        NotFiniteError: on every rank of the group, where the logits are not finite.
    """
    packed = torch.zeros(2, draw.size(0), dtype=torch.float64, device=draw.device)
    if logits is not None:
        packed[0], packed[1] = sample_tokens(logits, draw, sampling, actor.chat.size, banned, stops.ids)
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            # Equal in theory; a differing last bit would let tensor-parallel ranks decode different texts.
            torch.distributed.broadcast(
                packed,
                parallel_state.get_tensor_model_parallel_src_rank(),
                parallel_state.get_tensor_model_parallel_group(),
            )
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(
            packed,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            parallel_state.get_pipeline_model_parallel_group(),
        )
    refuse_not_finite(packed[1], f"the {actor.role}")  # they have what the last stage has: all ranks or none
    return packed[0].long(), packed[1].float()
