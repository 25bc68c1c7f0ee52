"""Seconds by part, from what Megatron computes and what the hardware is assumed to reach.

Each function is one part; the assumptions are in ``HardwareConfig``. Nothing overlaps unless it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_magic.config.hardware import HardwareConfig
from nemo_magic.planner.shapes import Part, Shapes

GIGA = 1e9


@dataclass(frozen=True)
class Links:
    """``within``: the ranks of a tensor-parallel group share a node; ``nodes``: data-parallel ranks do not."""

    tp_within: bool
    dp_within: bool


def microbatch(shapes: Shapes, hardware: HardwareConfig, tp: int, backward: bool, links: Links) -> float:
    """One microbatch on the slowest pipeline stage, forwards and, if asked, backwards."""
    passes = 3 if backward else 1
    floor = passes * hardware.layer_floor_us * 1e-6
    # Two all-reduces of the hidden state a layer and pass; of twice the passes where the forward pass is run again.
    rate = (hardware.nvlink_gb_s if links.tp_within else hardware.network_gb_s) * hardware.links_reached * GIGA
    again = backward and shapes.layer.recomputed > 0
    exchanged = 2 * (2 if backward else 1) * 2 * (tp - 1) / tp * shapes.hidden / rate
    layer = max(_compute(shapes.layer, hardware, backward), floor) + exchanged * (1.5 if again else 1.0)
    ends = max(_compute(shapes.first, hardware, backward), _compute(shapes.last, hardware, backward))
    sent = (2 if backward else 1) * shapes.hidden / (hardware.network_gb_s * hardware.links_reached * GIGA)
    return shapes.layers_of_stage * layer + ends + (sent if shapes.pp > 1 else 0.0)


def _compute(part: Part, hardware: HardwareConfig, backward: bool) -> float:
    flops = part.forward + (part.backward if backward else 0.0)
    return flops / (hardware.tflops * hardware.flops_reached * 1e12)


def passes(shapes: Shapes, hardware: HardwareConfig, tp: int, microbatches: int, backward: bool, links: Links) -> float:
    """All microbatches of a rank through the pipeline, its filling and emptying included."""
    return (microbatches + shapes.pp - 1) * microbatch(shapes, hardware, tp, backward, links)


def optimizer_step(
    parameters: float, gradient_bytes: float, state_bytes: float, dp: int, hardware: HardwareConfig, links: Links
) -> float:
    """Gradients are reduced over data-parallel ranks and weights gathered back; the optimizer's state is read and
    written once. ``state_bytes``: on this rank."""
    rate = (hardware.nvlink_gb_s if links.dp_within else hardware.network_gb_s) * hardware.links_reached * GIGA
    moved = parameters * (gradient_bytes + 2) * (dp - 1) / dp / rate
    return moved + 3 * state_bytes / (hardware.memory_gb_s * hardware.memory_reached * GIGA)


def decoding(
    *,
    rows: int,
    at_once: int,
    prompt: float,
    response: float,
    longest: float,
    weight_bytes: float,
    kv_bytes: float,
    layers: int,
    pp: int,
    forward_flops_per_token: float,
    hardware: HardwareConfig,
) -> float:
    """Decode ``rows`` responses on one engine, ``at_once`` together; those together wait for the ``longest``.

    A step reads the weights and the keys and values of all rows that still speak. ``weight_bytes``, ``kv_bytes`` (per
    token) and ``forward_flops_per_token`` are of one rank and all its layers; ``pp`` stages follow each other.
    """
    if rows == 0:
        return 0.0
    cohorts = -(-rows // at_once)
    together = rows / cohorts
    read = hardware.memory_gb_s * hardware.memory_reached * GIGA
    compute = hardware.tflops * hardware.flops_reached * 1e12
    prefill = together * prompt * forward_flops_per_token / compute
    fixed = pp * weight_bytes / read + layers * hardware.decode_layer_us * 1e-6
    # Rows fall silent on the way: over all steps, each keeps its own length's worth of tokens.
    spoken = together * response * (prompt + response / 2) * kv_bytes * pp / read
    computed = together * response * forward_flops_per_token / compute
    return cohorts * (prefill + longest * fixed + spoken + computed)


def refit(weight_bytes: float, hardware: HardwareConfig) -> float:
    """``weight_bytes``: of the tensor-parallel shard of the whole model, which every rank's engine holds."""
    return weight_bytes / (hardware.refit_gb_s * GIGA)


def swap(moved: float, hardware: HardwareConfig) -> float:
    """``moved`` bytes go to the host and as many come: optimizers at the end of a phase, or a policy and its
    reference, which is two swaps, there and back."""
    return 2 * moved / (hardware.host_link_gb_s * hardware.links_reached * GIGA)
