"""Published steps, and the sources of the plan's constants: two lists that share no figure.

``HardwareConfig``'s assumed shares come from pre-training (``PRETRAINING``), serving (``DECODE_STEPS``) and a refit
(``REFIT``). ``STEPS`` are steps of reinforcement learning with their settings, as published, and the assumptions about
the rest; ``predict`` applies the plan's arithmetic to one. docs/planner.md has the tables, and the order in which they
were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch

from nemo_magic.config.hardware import HardwareConfig
from nemo_magic.model_config import ModelConfig
from nemo_magic.planner import seconds
from nemo_magic.planner.memory import GIB
from nemo_magic.planner.shapes import Shapes, measure

LLAMA_70B = ModelConfig(
    num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_query_groups=8,
    encoder_seq_length=8192, vocab_size=128256, rotary_base=500000, transformer_engine=True,
)  # fmt: skip
LLAMA_8B = replace(LLAMA_70B, num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32)
QWEN3_32B = replace(
    LLAMA_70B, num_layers=64, hidden_size=5120, ffn_hidden_size=25600, kv_channels=128, vocab_size=151936,
    rotary_base=1000000,
)  # fmt: skip
"""Without its norms of queries and keys, which are 16,384 of 32.8 billion parameters."""


# --- sources of the constants


@dataclass(frozen=True)
class Pretraining:
    """``rows`` × ``tokens`` in an optimizer step of ``seconds`` on ``gpus`` H100; ``bubble``: the pipeline's filling
    and emptying, as a share of its work. Tensor parallelism's exchanges are overlapped with the products."""

    model: ModelConfig
    gpus: int
    rows: int
    tokens: int
    bubble: float
    seconds: float


PRETRAINING = Pretraining(LLAMA_70B, 64, 128, 8192, 3 / (5 * 64), 14.72)
"""Llama 3.1 70B in BF16: TP4 × PP4 × CP2, 5 virtual stages, 64 microbatches, NeMo 24.09 (NVIDIA/dgxc-benchmarking,
llama3.1/README.md at 24.11.1). Its own 54.1 % count the whole square of attention, and the bubble as time."""


def flops_reached(run: Pretraining, hardware: HardwareConfig) -> float:
    """Share of the peak that ``run`` reaches while it computes, by this package's own count of FLOPs."""
    tp = 4  # of no consequence for the sum; smaller pieces are measured faster
    shapes = _measured(run.model, tp, 1, run.tokens)
    parts = ((shapes.layer, shapes.layers), (shapes.first, 1), (shapes.last, 1))
    flops = run.rows * tp * sum(count * (part.forward + part.backward) for part, count in parts)
    return flops * (1 + run.bubble) / (run.seconds * run.gpus * hardware.tflops * 1e12)


DECODE_STEPS = {2: 0.01858, 4: 0.01154}
"""TP → seconds between two tokens of one response; Llama 3 70B, weights in FP8, TensorRT-LLM on H100: two GPUs (NVIDIA
NIM's performance page, Llama-3.3-70B 1.8.0), four GPUs (NVIDIA/dgxc-benchmarking, inf_nim/llama3 at 25.05.05)."""

DECODE_BYTES = 70_553_706_496
"""Of all those weights: layers at one byte, the head at two, the embedding not read."""


REFIT = (65.5, 7.0)
"""10⁹ bytes of a dense model of 32 billion parameters in 16 bits, which NeMo-RL gathered, converted and installed in so
many seconds on 16 nodes (its pull request 449; that backend, DTensor, is none of those below)."""


def decode_step(hardware: HardwareConfig, tp: int) -> float:
    """The plan's seconds for a case of ``DECODE_STEPS``."""
    read = DECODE_BYTES / tp / (hardware.memory_gb_s * hardware.memory_reached * seconds.GIGA)
    return read + LLAMA_70B.num_layers * hardware.decode_layer_us * 1e-6


# --- the steps


@dataclass(frozen=True)
class PublishedStep:
    """A step of one policy on H100, ``measured`` by part in seconds ("step" is the whole).

    ``engine``: GPUs of an engine. ``updates`` optimizer steps share ``rows`` responses. ``prompt``, ``response``: mean
    tokens; ``limit``: of both together. ``packed``, ``scored_packed``: tokens in a microbatch of an update and of
    log-probabilities, rows of mean length packed; 0: one row a microbatch, padded to ``limit``. ``recompute``: full,
    layer by layer. ``together``: rows decoded at once, 0: as many as fit into the engine's memory for keys and values.
    ``whole_refit``: a rank gathers whole tensors for its engine, otherwise only its shard. ``assumed``: the settings
    that were not published.
    """

    name: str
    model: ModelConfig
    gpus: int
    tp: int
    pp: int
    engine: int
    prompt: int
    response: int
    measured: Mapping[str, float]
    assumed: str
    rows: int = 2048
    updates: int = 4
    limit: int = 4096
    packed: int = 4096
    scored_packed: int = 16384
    recompute: bool = False
    together: int = 0
    whole_refit: bool = True
    gradient_bytes: int = 2

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.tp * self.pp)


def _parts(generation: float, training: float, logprobs: float, refit: float, step: float) -> Mapping[str, float]:
    return {"generation": generation, "training": training, "logprobs": logprobs, "refit": refit, "step": step}


def _aligner(nodes: int, response: int, step: float, together: int = 8) -> PublishedStep:
    return PublishedStep(
        f"NeMo-Aligner, Llama-3-70B PPO, {nodes} nodes", LLAMA_70B, 8 * nodes, 8, 2, 8, 300, response, {"step": step},
        "layout, prompts, limit of 1,024 tokens, the critic never waited for", rows=1024, updates=8, limit=1324,
        packed=0, scored_packed=0, together=together, whole_refit=False, gradient_bytes=4,
    )  # fmt: skip


STEPS = (
    # developer.nvidia.com, "Reinforcement Learning with NVIDIA NeMo-RL: Megatron-Core Support", Table 1 (NeMo-RL v0.3);
    # microbatches from its recipes examples/configs/grpo_math_{8B,70B}_megatron.yaml at v0.3.0.
    PublishedStep(
        "NeMo-RL 0.3, Llama-3.1-70B", LLAMA_70B, 64, 4, 4, 4, 130, 398, _parts(84, 28, 18, 14, 147), "prompts",
    ),
    PublishedStep("NeMo-RL 0.3, Llama-3.1-8B", LLAMA_8B, 8, 1, 1, 1, 130, 795, _parts(58, 28, 18, 5, 112), "prompts"),
    PublishedStep(
        "NeMo-RL 0.3, Qwen3-32B", QWEN3_32B, 64, 4, 2, 4, 107, 3283, _parts(96, 68, 40, 7, 213),
        "prompts, engines, microbatches",
    ),
    # NeMo-RL's docs/about/performance-summary.md at v0.4.0 and v0.5.0, recipes under examples/configs/recipes/llm.
    PublishedStep(
        "NeMo-RL 0.4, Llama-3.1-8B", LLAMA_8B, 16, 1, 2, 1, 132, 1060, {"step": 97.7}, "prompts",
        scored_packed=8192, recompute=True,
    ),
    PublishedStep(
        "NeMo-RL 0.5, Llama-3.1-8B", LLAMA_8B, 16, 1, 2, 1, 127, 1019, {"step": 92.8}, "prompts",
        scored_packed=8192, recompute=True,
    ),
    PublishedStep("NeMo-RL 0.4, Qwen3-32B", QWEN3_32B, 32, 4, 4, 4, 110, 3206, {"step": 393}, "prompts"),
    PublishedStep("NeMo-RL 0.5, Qwen3-32B", QWEN3_32B, 32, 4, 4, 4, 103, 3251, {"step": 376}, "prompts"),
    # NeMo-Aligner's docs/user-guide/rlhf.rst; nodes of the actor.
    _aligner(8, 351, 366.7),
    _aligner(16, 323, 190.4),
    _aligner(32, 332, 108.0),
    _aligner(64, 334, 56.9, together=16),
)  # fmt: skip

_ENGINE_MEMORY = 0.6
"""Of a device's memory, the engine's: vLLM's gpu_memory_utilization in every recipe of NeMo-RL above."""


def predict(step: PublishedStep, hardware: HardwareConfig) -> dict[str, float]:
    """Seconds of ``step`` by part, and of all parts as ``step``."""
    within = seconds.Links(tp_within=step.tp <= 8, dp_within=step.gpus <= 8)
    row = step.prompt + step.response if step.packed else step.limit
    shapes = _shapes(step, row)
    count, rows = _microbatches(step, row, step.packed, step.rows // step.updates)
    largest = max(shapes.parameters(stage) for stage in range(step.pp))
    update = seconds.passes(shapes.times(rows), hardware, step.tp, count, True, within)
    update += seconds.optimizer_step(largest, step.gradient_bytes, largest * 12 / step.dp, step.dp, hardware, within)
    count, rows = _microbatches(step, row, step.scored_packed, step.rows)
    scored = seconds.passes(shapes.times(rows), hardware, step.tp, count, False, within)
    weights = shapes.rank_parameters * 2.0
    parts = {
        "generation": _generation(step, hardware),
        "training": step.updates * update,
        # Of the policy and of the reference, which is swapped in and out.
        "logprobs": 2 * scored + 2 * seconds.swap(largest * 2.0, hardware),
        "refit": seconds.refit(weights * (step.tp if step.whole_refit else 1), hardware),
    }
    return parts | {"step": sum(parts.values())}


def _shapes(step: PublishedStep, tokens: int) -> Shapes:
    """Of one row of ``tokens``, in the step's training layout."""
    model = replace(
        step.model,
        activations_checkpoint_granularity="full" if step.recompute else None,
        activations_checkpoint_method="uniform" if step.recompute else None,
        activations_checkpoint_num_layers=1 if step.recompute else None,
    )
    return _measured(model, step.tp, step.pp, tokens)


def _measured(model: ModelConfig, tp: int, pp: int, tokens: int) -> Shapes:
    return measure(model, cast(int, model.vocab_size), tp, pp, 1, tokens, torch.bfloat16)


def _microbatches(step: PublishedStep, row: int, packed: int, rows: int) -> tuple[int, float]:
    """(microbatches on a rank, rows in each) for ``rows`` over all ranks."""
    each = rows / step.dp
    count = -int(-each * row // packed) if packed else -int(-each // 1)
    return count, each / count


def _generation(step: PublishedStep, hardware: HardwareConfig) -> float:
    model = step.model
    shapes = _measured(model, step.engine, 1, step.prompt + step.response)
    width = model.kv_channels or model.hidden_size // model.num_attention_heads
    kv_bytes = 2.0 * model.num_layers * (model.num_query_groups or model.num_attention_heads) / step.engine * width * 2
    weights = shapes.rank_parameters * 2.0
    rows = -(-step.rows * step.engine // step.gpus)
    longest = step.limit - step.prompt
    # Where most rows run to the limit, each holds its mean length at once; where they finish all along, half of it.
    held = step.prompt + (step.response if step.response > longest / 2 else step.response / 2)
    room = _ENGINE_MEMORY * hardware.memory_gib * GIB - hardware.reserved_gib * GIB - weights
    per_token = shapes.layers * shapes.layer.forward + shapes.first.forward + shapes.last.forward
    return seconds.decoding(
        rows=rows,
        at_once=step.together or min(rows, int(room / kv_bytes / held)),
        refilled=False,
        prompt=step.prompt,
        response=step.response,
        longest=longest,
        weight_bytes=weights,
        kv_bytes=kv_bytes,
        layers=model.num_layers,
        pp=1,
        forward_flops_per_token=per_token / (step.prompt + step.response),
        hardware=hardware,
    )
