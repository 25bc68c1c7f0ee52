"""Decoding by vLLM in this process, for actors at any TP × PP × DP. Run on CPU only (docs/backends.md).

The ranks of a tensor-parallel group hold one engine together, with all layers, and pipeline stages decode different
rows. An engine is built once per architecture, without weights. An actor's are streamed into it by name whenever it
holds others, and a few fixed tokens are then scored by both: an engine that keeps an old weight without a word
(vllm#48312) is found. Roles on one base have an engine that holds the base, and are adapters in it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from safetensors.torch import save_file

from nemo_magic.actors.config import VLLM_RANKS, GenerationConfig, LengthConfig, SamplingConfig
from nemo_magic.actors.distributed import World, share_among_stages
from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.generation import StaleWeightsError, refuse_too_long
from nemo_magic.actors.hf_weights import LiveWeights
from nemo_magic.actors.random_state import random_states, set_random_states
from nemo_magic.actors.sampling import StopConditions, refuse_not_finite, to_completion
from nemo_magic.compat.vllm import external_ranks
from nemo_magic.game.episode import Completion
from nemo_magic.hf_format.adapters import PEFT_CONFIG, PEFT_TENSORS, peft_config
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import config_of, padded_rows
from nemo_magic.rl.batch import Row, microbatches

if TYPE_CHECKING:
    from nemo_magic.actors.config import ActorConfig
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.game.episode import Role

_SCORED = 64
"""Tokens that are scored after a refit."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""By how much the scores of a token may differ, in nats, on average. A stale weight makes it a multiple."""


class RefitError(RuntimeError):
    """After a refit the engine does not compute what the actor computes."""


@dataclass
class _Engine:
    """``holds``: the base's digest, or the actor and the version of its weights; None where nothing is known of them.
    ``adapter``: the request of the adapters that are in use, and whose they are."""

    llm: Any
    folder: Path
    can_sleep: bool
    is_asleep: bool = False
    holds: Any = None
    adapter: Any = None
    adapter_of: Any = None


class VLLMGenerator:
    """A ``Generator``. ``options``: whether log-probabilities can be had depends on the roles' sampling.

    Raises:
        ModelError: no architecture of Hugging Face computes what the model of an actor does.
    """

    def __init__(self, config: GenerationConfig, options: Mapping[Role, ActorConfig]) -> None:
        self._config, self._rows = config.vllm, config.batch_size
        temperatures = {one.sampling_params.temperature for one in options.values()}
        # vLLM's are of temperature 1 and before all restrictions, or those that were sampled from.
        self._logprobs_are_raw = temperatures == {1.0}
        self._folder = Path(tempfile.mkdtemp(prefix="nemo_magic_vllm_"))
        self._engines: dict[str, _Engine] = {}
        self._adapters_written = 0
        self._actor: Actor | None = None
        self._metrics: dict[str, float] = {}
        self.drain()

    # --- the Generator protocol

    def load(self, actor: Actor) -> None:
        """As ``Generator.load``: build, or refit where the engine holds other weights.

        Raises:
            RefitError: on every rank, when the engine then scores tokens otherwise than the actor.
        """
        self.pause()
        engine = self._engine_of(actor)
        for other in self._engines.values():
            if other is not engine:
                self._sleep(other)
        if engine.is_asleep:
            engine.llm.wake_up()
            engine.is_asleep = False
        if self._refit(engine, actor):
            self._compare(engine, actor)
        # A row's numbers would depend on what was decoded before, in the last digits.
        engine.llm.reset_prefix_cache()
        self._actor = actor

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        lengths: LengthConfig,
    ) -> list[Completion]:
        """As ``Generator.generate``. Completions have no log-probabilities where vLLM's would be others than those that
        are trained on.

        Raises:
            StaleWeightsError: when no actor is loaded, or the loaded one has changed since ``load``.
            ValueError: when a prompt and ``lengths.max_length`` together exceed ``model.encoder_seq_length``.
        """
        actor, engine = self._loaded()
        refuse_too_long(actor, prompts, lengths)
        stops = StopConditions.of(actor.chat, sampling.end_strings, "cpu")

        def decode(rows: Sequence[int]) -> list[Completion]:
            requests = [{"prompt_token_ids": list(prompts[i])} for i in rows]
            params = [self._parameters(actor, stops, seeds[i], sampling, lengths) for i in rows]
            answers = engine.llm.generate(requests, params, use_tqdm=False, lora_request=engine.adapter) if rows else []
            return [
                self._completion(actor, list(prompts[i]), answer.outputs[0], stops)
                for i, answer in zip(rows, answers, strict=True)
            ]

        completions = share_among_stages(len(prompts), decode)
        # On all of them: a stage that raised alone would leave the others waiting.
        refuse_not_finite(torch.tensor([value for one in completions for value in one.logprobs]), f"the {actor.role}")
        return completions

    def pause(self) -> None:
        """The engine and its weights stay."""
        self._actor = None

    def release(self) -> None:
        """The engine gives its weights and its cache back to the device. On CPU vLLM cannot."""
        self.pause()
        for engine in self._engines.values():
            self._sleep(engine)

    def close(self) -> None:
        """Remove the engines."""
        self.pause()
        for engine in self._engines.values():
            engine.llm.llm_engine.engine_core.shutdown()
        self._engines.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def drain(self) -> dict[str, float]:
        """Since the last call: refits, their seconds, and the largest difference that was found after one, in nats."""
        drained = self._metrics
        self._metrics = dict.fromkeys(("timers/refit", "generation/refits", "generation/refit_difference"), 0.0)
        return drained

    # --- engines

    def _engine_of(self, actor: Actor) -> _Engine:
        rows = padded_rows(actor.cfg, actor.chat.size)
        try:
            config = config_of(actor.cfg, rows, {"eos_token_id": actor.chat.end_id, "pad_token_id": actor.chat.pad_id})
        except ConvertError as error:
            raise ModelError(f"generation.engine=vllm knows no architecture of the {actor.role}'s: {error}") from error
        # A tied head keeps its old weights in a refit.
        config |= {"tie_word_embeddings": False}
        lora = None if actor.card is None else next(rank for rank in VLLM_RANKS if rank >= actor.card.adapter_dim)
        key = json.dumps([config, actor.cfg.encoder_seq_length, lora], sort_keys=True)
        if key not in self._engines:
            folder = self._folder / f"engine{len(self._engines)}"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            actor.chat.wrapped.save_pretrained(folder)
            self._engines[key] = self._build(actor, folder, lora)
        return self._engines[key]

    def _build(self, actor: Actor, folder: Path, lora: int | None) -> _Engine:
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        dtype = next(actor.get_model_module_list()[0].parameters()).dtype
        options: dict[str, Any] = {} if lora is None else {"enable_lora": True, "max_lora_rank": lora}
        if on_cpu:
            # A row that is read in parts draws once for each, and a generator of a CPU cannot be set back.
            options |= {"kv_cache_memory_bytes": self._kv_cache_bytes(actor, dtype), "enable_chunked_prefill": False}
        states = random_states()
        name = World.current().broadcast_from_main(f"nemo_magic_{uuid.uuid4().hex}")
        with external_ranks(name):
            llm = LLM(
                str(folder),
                load_format="dummy",
                dtype=str(dtype).removeprefix("torch."),
                tensor_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
                distributed_executor_backend="external_launcher",
                max_model_len=actor.cfg.encoder_seq_length,
                max_num_seqs=self._rows,
                gpu_memory_utilization=self._config.gpu_memory_utilization,
                enforce_eager=on_cpu,
                enable_sleep_mode=not on_cpu,
                logprobs_mode="raw_logprobs" if self._logprobs_are_raw else "processed_logprobs",
                **options,
            )
        set_random_states(states)
        return _Engine(llm, folder, can_sleep=not on_cpu)

    def _kv_cache_bytes(self, actor: Actor, dtype: torch.dtype) -> int:
        """What ``generation.batch_size`` rows of the greatest length take, of this rank's heads, in blocks of 128."""
        model = actor.cfg
        groups = model.num_query_groups or model.num_attention_heads
        size = model.kv_channels or model.hidden_size // model.num_attention_heads
        held = -(-groups // parallel_state.get_tensor_model_parallel_world_size())
        tokens = (self._rows + 1) * -(-model.encoder_seq_length // 128) * 128
        return 2 * model.num_layers * held * size * dtype.itemsize * tokens

    def _refit(self, engine: _Engine, actor: Actor) -> bool:
        """Give ``engine`` the actor's present weights, unless it has them. Whether it had others."""
        began = time.perf_counter()
        version = (actor, actor.weights_version)
        wanted = version if actor.card is None else actor.card.digest
        if engine.holds == wanted and (actor.card is None or engine.adapter_of == version):
            return False
        weights = LiveWeights(actor)
        if engine.holds != wanted:
            engine.holds = None
            with torch.no_grad():
                engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.tensors()})
            engine.holds = wanted
        if actor.card is not None:
            self._put_adapters(engine, actor, weights)
            engine.adapter_of = version
        self._metrics["generation/refits"] += 1
        self._metrics["timers/refit"] += time.perf_counter() - began
        return True

    def _put_adapters(self, engine: _Engine, actor: Actor, weights: LiveWeights) -> None:
        """Every rank reads a copy of its own, which no other one waits for."""
        from vllm.lora.request import LoRARequest

        card = actor.card
        assert card is not None
        if engine.adapter is not None:
            engine.llm.llm_engine.remove_lora(engine.adapter.lora_int_id)
        self._adapters_written += 1
        folder = engine.folder / f"adapters{self._adapters_written}"
        folder.mkdir()
        config = peft_config(card.targets, card.adapter_dim, card.alpha, str(engine.folder))
        (folder / PEFT_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        save_file({name: tensor.cpu() for name, tensor in weights.adapters()}, folder / PEFT_TENSORS)
        engine.adapter = LoRARequest(folder.name, self._adapters_written, str(folder))
        engine.llm.llm_engine.add_lora(engine.adapter)
        shutil.rmtree(folder)

    def _compare(self, engine: _Engine, actor: Actor) -> None:
        """Raises RefitError, on every rank, where the two score a few tokens differently."""
        from vllm import SamplingParams

        count = min(_SCORED, actor.cfg.encoder_seq_length - 1)
        ids = torch.randint(actor.chat.size, (count,), generator=torch.Generator().manual_seed(0)).tolist()
        multiple = actor.cfg.tensor_model_parallel_size if actor.cfg.sequence_parallel else 1
        batch = microbatches([Row((ids[0],), tuple(ids[1:]))], 1, actor.chat.pad_id, pad_to_multiple=multiple)
        own = actor.token_logprobs(batch, temperature=1.0)[0][0].double().cpu()
        scoring = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        row = [{"prompt_token_ids": ids}]
        (answer,) = engine.llm.generate(row, scoring, use_tqdm=False, lora_request=engine.adapter)
        scored = zip(answer.prompt_logprobs[1:], ids[1:], strict=True)
        theirs = torch.tensor([position[index].logprob for position, index in scored], dtype=torch.float64)
        difference = (own[: len(theirs)] - theirs).abs().mean().reshape(1)
        difference = difference.nan_to_num(torch.inf).to(torch.cuda.current_device())
        torch.distributed.all_reduce(difference, torch.distributed.ReduceOp.MAX)
        nats, tolerance = float(difference), _TOLERANCE[next(actor.get_model_module_list()[0].parameters()).dtype]
        self._metrics["generation/refit_difference"] = max(self._metrics["generation/refit_difference"], nats)
        if nats > tolerance:
            engine.holds = engine.adapter_of = None
            raise RefitError(
                f"after a refit vLLM scores {count} tokens by {nats:.3g} nats a token otherwise than the {actor.role} "
                f"({tolerance:g} is allowed): it holds other weights, or computes another model. "
                "generation.engine=native decodes with the actor itself"
            )

    def _sleep(self, engine: _Engine) -> None:
        if engine.can_sleep and not engine.is_asleep:
            engine.llm.sleep(level=2)
            engine.is_asleep, engine.holds, engine.adapter_of = True, None, None

    def _loaded(self) -> tuple[Actor, _Engine]:
        actor = self._actor
        if actor is None:
            raise StaleWeightsError("generate() before load(actor)")
        engine = self._engine_of(actor)
        held = engine.holds if actor.card is None else engine.adapter_of
        if held != (actor, actor.weights_version):
            version = None if held is None else held[1]
            raise StaleWeightsError(
                f"the {actor.role} is at weights version {actor.weights_version}, the engine holds {version}: call "
                "load(actor) after an update"
            )
        return actor, engine

    # --- decoding

    def _parameters(
        self, actor: Actor, stops: StopConditions, seed: int, sampling: SamplingConfig, lengths: LengthConfig
    ) -> Any:
        from vllm import SamplingParams

        padding = range(actor.chat.size, padded_rows(actor.cfg, actor.chat.size))
        return SamplingParams(
            temperature=0.0 if sampling.use_greedy else sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=seed % (1 << 63),
            stop=list(stops.strings),
            stop_token_ids=stops.ids.tolist(),
            max_tokens=lengths.max_length,
            min_tokens=lengths.min_length,
            logprobs=0 if self._has_logprobs(sampling, lengths) else None,
            flat_logprobs=True,
            detokenize=bool(stops.strings),
            logit_bias=dict.fromkeys(padding, -torch.inf) if padding else None,
        )

    def _has_logprobs(self, sampling: SamplingConfig, lengths: LengthConfig) -> bool:
        """Whether vLLM's are those of the whole distribution at the sampling temperature."""
        if self._logprobs_are_raw:
            return sampling.use_greedy or sampling.temperature == 1.0
        return not (sampling.use_greedy or sampling.top_k > 0 or sampling.top_p < 1.0 or lengths.min_length > 0)

    def _completion(self, actor: Actor, prompt: list[int], answer: Any, stops: StopConditions) -> Completion:
        ids = list(answer.token_ids)
        logprobs = [] if answer.logprobs is None else list(answer.logprobs.logprobs)
        end = stops.end_of(actor.chat, ids)
        size = len(ids) if end is None else end
        padded = [0.0] * len(prompt) + logprobs if logprobs else []
        return to_completion(actor.chat, prompt, prompt + ids, padded, size, end is not None, stops)
