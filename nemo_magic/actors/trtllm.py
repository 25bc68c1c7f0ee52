"""Decoding by TensorRT-LLM, through NeMo-Aligner's wrapper of it. Not run on hardware (docs/hardware.md).

A process has one decoder, a global of NeMo's exporter: building a second one keeps the first without a word, and a
refit goes to whichever is there. So one generator owns it for both roles, builds an engine once per architecture,
refits it whenever it holds other weights than those of the actor that decodes, and unloads it before another
architecture. Of adapters it holds merged weights (merging.py).

TensorRT-LLM gives no log-probabilities; those that are trained on come from Megatron
(``train_optim/neg_logprob_minus_entropy`` tells whether the two agree).
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from megatron.core import parallel_state
from nemo_aligner.utils.distributed import broadcast_2d_tensor_within_mp, broadcast_tensor_within_pp
from nemo_aligner.utils.parallel_state import trt_llm_reshard_region
from nemo_aligner.utils.utils import clear_memory

from nemo_magic.actors.config import GenerationConfig, LengthConfig, SamplingConfig
from nemo_magic.actors.distributed import share_among_stages
from nemo_magic.actors.generation import StaleWeightsError
from nemo_magic.actors.merging import MergedWeights
from nemo_magic.actors.sampling import StopConditions, to_completion
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.compat.trtllm import scaled_rotary
from nemo_magic.game.episode import Completion

if TYPE_CHECKING:
    from nemo_magic.actors.nemo_aligner.actor import MagicActor

_ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "encoder_seq_length", "max_position_embeddings", "make_vocab_size_divisible_by", "normalization",
    "layernorm_epsilon", "bias", "qkv_bias", "activation", "position_embedding_type", "rotary_percentage",
    "rotary_base", "seq_len_interpolation_factor", "scale_positional_embedding", "rope_scaling_factor",
    "share_embeddings_and_output_weights",
)  # fmt: skip
_SEEDS = 1 << 32  # the range of seeds that NeMo-Aligner draws from
_UNFILLED = "Weights dict did not contain weights"  # how NeMo warns of a refit that left old weights in the engine


class RefitError(RuntimeError):
    """A refit left weights in the engine that are not the actor's."""


@dataclass
class _Engine:
    """What can be decoded with at one architecture. ``holds``: the actor and the version of the weights in it, None
    where nothing is known of them."""

    wrapper: Any
    folder: Path
    is_built: bool = False
    holds: tuple[MagicActor, int] | None = None


class TRTLLMGenerator:
    """A ``Generator`` for actors at any TP × PP. With ``reshard`` every pipeline stage decodes rows of its own.

    ``longest_prompt``, ``longest_response``: what engines are built for, in tokens.

    Raises:
        RuntimeError: another decoder is loaded in this process already.
    """

    def __init__(self, config: GenerationConfig, longest_prompt: int, longest_response: int) -> None:
        from mpi4py import MPI

        self._config = config.trt_llm
        self._rows = config.batch_size
        self._longest_prompt = self._config.max_input_len or longest_prompt
        self._longest_response = longest_response
        # A build splits MPI's world and puts a part in its place; the next build wants the whole again.
        self._mpi_world = MPI.COMM_WORLD
        self._folder = Path(self._config.engine_dir) / _broadcast_from_main(uuid.uuid4().hex)
        self._engines: dict[tuple[Any, ...], _Engine] = {}
        self._wrappers: dict[tuple[Any, ...], Any] = {}
        self._live: _Engine | None = None
        self._merging = MergedWeights()
        self._actor: MagicActor | None = None
        self._metrics: dict[str, float] = {}
        self.drain()
        if _decoder() is not None:
            raise RuntimeError("a TensorRT-LLM engine is loaded in this process already, and there can be one only")

    # --- the Generator protocol

    def load(self, actor: Any) -> None:
        """As ``Generator.load``: build, or refit where the engine holds other weights.

        Raises:
            RefitError: on every rank, when a rank's refit was incomplete.
            ValueError: for a vocabulary that the exporter cannot divide among tensor-parallel ranks.
        """
        self.pause()
        actor.prepare_for_inference()
        self._actor = actor
        engine = self._engine_of(actor)
        if self._live not in (engine, None):
            self._unload()
        if engine.holds is None or engine.holds[0] is not actor or engine.holds[1] != actor.weights_version:
            self._refit(engine, actor)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        lengths: LengthConfig,
    ) -> list[Completion]:
        """As ``Generator.generate``; completions have no log-probabilities.

        Raises:
            StaleWeightsError: when no actor is loaded, or the engine holds other weights than it has now.
            ValueError: when a prompt or ``lengths`` do not fit the engine.
        """
        actor = self._loaded()
        longest = max(map(len, prompts), default=0)
        if longest > self._longest_prompt or lengths.max_length > self._longest_response:
            raise ValueError(
                f"a prompt of {longest} tokens with length_params.max_length={lengths.max_length} does not fit the "
                f"engine, which was built for generation.trt_llm.max_input_len={self._longest_prompt} and responses of "
                f"{self._longest_response}"
            )
        wrapper = self._wrapper_for(actor, sampling, lengths)
        stops = StopConditions.of(actor.chat, sampling.end_strings, torch.cuda.current_device())

        def decode(own: Sequence[int]) -> list[Completion]:
            completions: dict[int, Completion] = {}
            with self._resharded():
                for cohort in self._cohorts(own, prompts):
                    rows, tokens = [list(prompts[i]) for i in cohort], [seeds[i] % _SEEDS for i in cohort]
                    decoded = _decode(wrapper, rows, tokens, self._rows)
                    for i, ids in zip(cohort, decoded, strict=True):
                        completions[i] = self._completion(actor, list(prompts[i]), ids[: lengths.max_length], stops)
            return [completions[i] for i in own]

        every = range(len(prompts))
        return share_among_stages(len(prompts), decode) if self._config.reshard else decode(every)

    def pause(self) -> None:
        """Leave inference mode; the engine and its weights stay."""
        if self._actor is not None:
            self._actor.finish_inference()
        self._actor = None

    def release(self) -> None:
        """Without ``unload_engine_train`` the engine stays, and so do the weights it holds."""
        self.pause()
        if self._config.unload_engine_train and self._live is not None:
            self._unload()

    def close(self) -> None:
        """Unload, and remove the engines from this node's disk."""
        from mpi4py import MPI

        self.pause()
        if self._live is not None:
            self._unload()
        shutil.rmtree(self._folder, ignore_errors=True)
        MPI.COMM_WORLD = self._mpi_world

    def drain(self) -> dict[str, float]:
        """Since the last call: refits and their seconds, and responses that were cut at an id that is no token."""
        drained = self._metrics
        self._metrics = dict.fromkeys(("timers/refit", "generation/refits", "generation/invalid_responses"), 0.0)
        return drained

    # --- engines

    def _engine_of(self, actor: MagicActor) -> _Engine:
        key = tuple(actor.cfg.get(name) for name in _ARCHITECTURE)
        if key not in self._engines:
            tp = parallel_state.get_tensor_model_parallel_world_size()
            if actor.tokenizer.vocab_size % tp:
                raise ValueError(
                    f"the {actor.role}'s tokenizer has {actor.tokenizer.vocab_size} ids, and TensorRT-LLM's exporter "
                    f"shares them out without padding: model.tensor_model_parallel_size={tp} has to divide them, or "
                    "set generation.engine=native"
                )
            folder = self._folder / f"engine{len(self._engines)}"
            wrapper = self._build_wrapper(actor, SamplingConfig(), self._longest_prompt, self._longest_response, folder)
            self._engines[key] = _Engine(wrapper, folder)
        return self._engines[key]

    def _refit(self, engine: _Engine, actor: MagicActor) -> None:
        from mpi4py import MPI

        began = time.perf_counter()
        engine.holds, self._live = None, engine
        if not engine.is_built:
            MPI.COMM_WORLD = self._mpi_world
        scaled = scaled_rotary(actor.cfg.rope_scaling_factor if actor.cfg.scale_positional_embedding else None)
        with _refit_warnings() as unfilled, scaled, self._merging.merged(actor):
            engine.wrapper.refit(actor.model)  # the first time, this builds
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, unfilled)
        problems = [text for texts in ranks for text in texts]
        if problems:
            raise RefitError(f"the engine kept weights that are not the {actor.role}'s: {problems[0]}")
        clear_memory()
        engine.is_built, engine.holds = True, (actor, actor.weights_version)
        self._metrics["generation/refits"] += 1
        self._metrics["timers/refit"] += time.perf_counter() - began

    def _unload(self) -> None:
        if self._live is not None:
            self._live.wrapper.trt_llm_exporter.unload_engine()
            self._live.holds = None
            clear_memory()
        self._live = None

    def _loaded(self) -> MagicActor:
        actor = self._actor
        if actor is None or self._live is None or self._live.holds is None:
            raise StaleWeightsError("generate() before load(actor)")
        held, version = self._live.holds
        if held is not actor or version != actor.weights_version:
            raise StaleWeightsError(
                f"the {actor.role} is at weights version {actor.weights_version}, the engine holds {version} of the "
                f"{held.role}: call load(actor) after an update"
            )
        return actor

    # --- decoding

    def _wrapper_for(self, actor: MagicActor, sampling: SamplingConfig, lengths: LengthConfig) -> Any:
        """The wrapper that knows a role's sampling and stop strings; it decodes with the engine that is loaded."""
        key = (actor, lengths.max_length, str(sampling))
        if key not in self._wrappers:
            room = min(self._longest_prompt, actor.cfg.encoder_seq_length - lengths.max_length)
            wrapper = self._build_wrapper(actor, sampling, room, lengths.max_length, self._folder / "none")
            # The wrapper finds a string's ids behind a text of its own, and has none where the two become one word.
            stops = _stop_words(actor.chat, StopConditions.of(actor.chat, sampling.end_strings, "cpu"))
            wrapper.sampling_config.update(stop_words_list=np.repeat(stops[None], self._rows, axis=0))
            self._wrappers[key] = wrapper
        return self._wrappers[key]

    def _build_wrapper(
        self, actor: MagicActor, sampling: SamplingConfig, prompt: int, response: int, folder: Path
    ) -> Any:
        from nemo_aligner.utils.trt_llm import GPTGenerateTRTLLM

        return GPTGenerateTRTLLM(
            model_cfg=actor.cfg,
            end_strings=[],
            tokenizer=actor.tokenizer,
            sample_temperature=sampling.temperature,
            sample_top_k=1 if sampling.use_greedy else sampling.top_k,
            sample_top_p=sampling.top_p,
            repetition_penalty=1.0,
            max_generation_length=response,
            max_input_len=prompt,
            generation_batch_size=self._rows,
            use_greedy=sampling.use_greedy,
            trt_model_type=self._config.model_type,
            seed=0,  # every row brings its own
            unload_engine_train=self._config.unload_engine_train,
            reshard_model=self._config.reshard,
            trt_model_dir=str(folder),
        )

    def _resharded(self) -> AbstractContextManager[None]:
        region: AbstractContextManager[None] = trt_llm_reshard_region() if self._config.reshard else nullcontext()
        return region

    def _cohorts(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Rows of similar length decode together: those of a cohort wait for its longest."""
        order = sorted(rows, key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self._rows):
            yield order[start : start + self._rows]

    def _completion(self, actor: MagicActor, prompt: list[int], ids: list[int], stops: StopConditions) -> Completion:
        """``ids`` up to where the response ends, or to the first that is no token."""
        size = next((n for n, index in enumerate(ids) if not 0 <= index < actor.chat.size), len(ids))
        self._metrics["generation/invalid_responses"] += size < len(ids)
        end = stops.end_of(actor.chat, ids[:size])
        size = size if end is None else end
        return to_completion(actor.chat, prompt, prompt + ids[:size], [], size, end is not None, stops)


def _decode(wrapper: Any, rows: list[list[int]], seeds: list[int], batch_size: int) -> list[list[int]]:
    """The ids decoded after every row; equal on all ranks that hold a part of the decoder."""
    # The list of stop words has a fixed number of rows: what is missing is filled up, and dropped again.
    missing = batch_size - len(rows)
    rows, seeds, count = rows + rows[:1] * missing, seeds + seeds[:1] * missing, len(rows)
    wrapper.sampling_config.update(random_seed=torch.tensor(seeds, dtype=torch.long))
    answer = _decoder().generate(
        batch_input_ids=[torch.tensor(row, dtype=torch.long) for row in rows],
        sampling_config=wrapper.sampling_config,
        streaming=False,
    )
    # Only the first pipeline stage receives the result: [rows, beams=1, prompt + response], and the length of both.
    ids = broadcast_tensor_within_pp(answer["output_ids"] if answer else None, from_last=False).squeeze(1).long()
    sizes = broadcast_tensor_within_pp(answer["sequence_lengths"] if answer else None, from_last=False).long()
    # Equal in theory; a differing last bit would let tensor-parallel ranks go on with different texts.
    ids = broadcast_2d_tensor_within_mp(ids, dtype=ids.dtype).tolist()
    sizes = broadcast_2d_tensor_within_mp(sizes, dtype=sizes.dtype).flatten().tolist()
    return [ids[i][len(rows[i]) : sizes[i]] for i in range(count)]


def _stop_words(chat: ChatTokenizer, stops: StopConditions) -> np.ndarray[Any, np.dtype[np.int32]]:
    """[2, n]: ids of all that may end a response, one after the other, and where each ends among them.

    A string may be spelled in more ways than are here: then a row goes on to its length limit, and is cut all the same.
    """
    spelled = [chat.encode(before + end) for end in stops.strings for before in ("", " ")]
    words = dict.fromkeys([*((index,) for index in stops.ids.tolist()), *(word for word in spelled if word)])
    ids = [index for word in words for index in word]
    offsets = np.cumsum([len(word) for word in words])
    return np.array([ids, np.pad(offsets, (0, len(ids) - len(offsets)), constant_values=-1)], dtype=np.int32)


def _decoder() -> Any:
    """The process's decoder, or None."""
    from nemo.export.trt_llm import tensorrt_llm_run

    return tensorrt_llm_run.tensorrt_llm_worker_context.decoder


@contextmanager
def _refit_warnings() -> Iterator[list[str]]:
    """Collects the warnings of NeMo that mean an incomplete refit."""
    warnings: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith(_UNFILLED):
                warnings.append(text)

    collector = Collector(logging.WARNING)
    logging.getLogger().addHandler(collector)
    try:
        yield warnings
    finally:
        logging.getLogger().removeHandler(collector)


def _broadcast_from_main(value: str) -> str:
    """Rank 0's ``value`` on every rank."""
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]
