"""A published step of somebody else's beside the plan's arithmetic, which was adjusted with this figure in view.

GRPO of Llama-3.1-70B on 64 H100, one policy, no judge (NeMo-RL v0.3): 147 s a step, of which generation 84, training
28, log-probabilities 18, refit 14. Published: TP4 × PP4, 2,048 rollouts of 64 prompts, 4,096 tokens at most, optimizer
steps of 512 rows, engines of TP4. Assumed: prompts of 120 and responses of 400 tokens in the mean and one response of
the greatest length, rows packed to the 4,096, no recompute, a reference policy that is swapped in, and whole tensors
gathered by every rank for a refit. The reference's swap, ``flops_reached`` (0.55 before) and ``refit_gb_s`` were chosen
after a first comparison: this is a check of consistency and no blind prediction (docs/planner.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from nemo_magic.hardware import HardwareConfig
from nemo_magic.model_config import ModelConfig
from nemo_magic.planner import seconds
from nemo_magic.planner.shapes import measure

PUBLISHED = {"generation": 84.0, "training": 28.0, "logprobs": 18.0, "refit": 14.0}
"""Seconds; together with what is not told apart, 147."""

TOTAL = 147.0
_ROLLOUTS, _UPDATE, _LIMIT = 2048, 512, 4096
_PROMPT, _RESPONSE = 120, 400
_TP = _PP = _DP = 4


def predicted(model: ModelConfig, vocab_size: int, hardware: HardwareConfig) -> dict[str, float]:
    """The parts of ``PUBLISHED``, for Llama-3.1-70B's ``model``."""
    packed = replace(model, activations_checkpoint_granularity=None, sequence_parallel=True)
    shapes = measure(packed, vocab_size, _TP, _PP, 1, _LIMIT, torch.bfloat16)
    links = seconds.Links(tp_within=True, dp_within=False)
    per_update = -(-_UPDATE * (_PROMPT + _RESPONSE) // (_LIMIT * _DP))
    everything = -(-_ROLLOUTS * (_PROMPT + _RESPONSE) // (_LIMIT * _DP))
    largest = max(shapes.parameters(stage) for stage in range(_PP))
    update = seconds.passes(shapes, hardware, _TP, per_update, True, links) + seconds.optimizer_step(
        largest, 4, largest * 12 / _DP, _DP, hardware, links
    )
    forward = seconds.passes(shapes, hardware, _TP, everything, False, links)
    engines = _PP * _DP
    per_token = shapes.layers * shapes.layer.forward + shapes.first.forward + shapes.last.forward
    width = model.hidden_size // model.num_attention_heads
    groups = model.num_query_groups or model.num_attention_heads
    generation = seconds.decoding(
        rows=_ROLLOUTS // engines,
        at_once=_ROLLOUTS // engines,
        prompt=_PROMPT,
        response=_RESPONSE,
        longest=_LIMIT - _PROMPT,
        weight_bytes=shapes.rank_parameters * 2.0,
        kv_bytes=2.0 * model.num_layers * groups / _TP * width * 2,
        layers=model.num_layers,
        pp=1,
        forward_flops_per_token=per_token / _LIMIT,
        hardware=hardware,
    )
    return {
        "generation": generation,
        "training": _ROLLOUTS // _UPDATE * update,
        "logprobs": 2 * forward + 2 * seconds.swap(largest * 2.0, hardware),
        "refit": seconds.refit(shapes.rank_parameters * 2.0 * _TP, hardware),
    }
