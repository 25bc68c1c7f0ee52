"""Seconds by part, from Megatron's FLOPs and bytes and the assumed rates of the hardware.

Each function is one part; the assumptions are in ``HardwareConfig``. Nothing overlaps unless it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_magic.config.hardware import HardwareConfig
from nemo_magic.planner.shapes import Part, Shapes

GIGA = 1e9


@dataclass(frozen=True)
class Links:
    """Whether the ranks of a tensor-parallel group, and those of a data-parallel group, share a node."""

    tp_within: bool
    dp_within: bool


def microbatch(shapes: Shapes, hardware: HardwareConfig, tp: int, backward: bool, links: Links) -> float:
    """Seconds of one microbatch on the slowest pipeline stage: forward and, with ``backward``, backward pass."""
    passes = 3 if backward else 1
    floor = passes * hardware.layer_floor_us * 1e-6
    # Two all-reduces of the hidden state per layer and pass; half as many more where the forward pass is recomputed.
    rate = (hardware.nvlink_gb_s if links.tp_within else hardware.network_gb_s) * hardware.links_reached * GIGA
    recomputes = backward and shapes.layer.recomputed > 0
    all_reduces = 2 * (2 if backward else 1) * 2 * (tp - 1) / tp * shapes.hidden / rate
    layer = max(_compute(shapes.layer, hardware, backward), floor) + all_reduces * (1.5 if recomputes else 1.0)
    ends = max(_compute(shapes.first, hardware, backward), _compute(shapes.last, hardware, backward))
    sent = (2 if backward else 1) * shapes.hidden / (hardware.network_gb_s * hardware.links_reached * GIGA)
    return shapes.layers_of_stage * layer + ends + (sent if shapes.pp > 1 else 0.0)


def _compute(part: Part, hardware: HardwareConfig, backward: bool) -> float:
    flops = part.forward + (part.backward if backward else 0.0)
    return flops / (hardware.tflops * hardware.flops_reached * 1e12)


def passes(shapes: Shapes, hardware: HardwareConfig, tp: int, microbatches: int, backward: bool, links: Links) -> float:
    """Seconds of all microbatches of a rank through the pipeline, its bubble included."""
    return (microbatches + shapes.pp - 1) * microbatch(shapes, hardware, tp, backward, links)


def optimizer_step(
    parameters: float, gradient_bytes: float, state_bytes: float, dp: int, hardware: HardwareConfig, links: Links
) -> float:
    """Seconds to reduce gradients over data-parallel ranks, gather weights, and read and write the optimizer's state.

    ``parameters``, ``state_bytes``: of this rank.
    """
    rate = (hardware.nvlink_gb_s if links.dp_within else hardware.network_gb_s) * hardware.links_reached * GIGA
    moved = parameters * (gradient_bytes + 2) * (dp - 1) / dp / rate
    return moved + 3 * state_bytes / (hardware.memory_gb_s * hardware.memory_reached * GIGA)


def decoding(
    *,
    rows: int,
    at_once: int,
    refilled: bool,
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
    """Seconds to decode ``rows`` responses on one engine, in batches of ``at_once`` that wait for their ``longest``;
    with ``refilled`` a new row takes the place of each that ends, and only the last ones are waited for.

    A step reads the weights, and the keys and values of all unfinished rows. ``prompt``, ``response`` and ``longest``
    are tokens. ``weight_bytes``, ``kv_bytes`` (per token) and ``forward_flops_per_token`` are of one rank and all its
    layers; ``pp`` stages follow each other.
    """
    if rows == 0:
        return 0.0
    batches = -(-rows // at_once)
    batch = rows / batches
    read = hardware.memory_gb_s * hardware.memory_reached * GIGA
    compute = hardware.tflops * hardware.flops_reached * 1e12
    prefill = batch * prompt * forward_flops_per_token / compute
    steps = longest + (batches - 1) * (response if refilled else longest)
    fixed = pp * weight_bytes / read + layers * hardware.decode_layer_us * 1e-6
    # Rows finish on the way: over all steps, each reads keys and values for its own length.
    kv_reads = batch * response * (prompt + response / 2) * kv_bytes * pp / read
    computed = batch * response * forward_flops_per_token / compute
    return batches * (prefill + kv_reads + computed) + steps * fixed


def refit(weight_bytes: float, hardware: HardwareConfig) -> float:
    """Seconds of a refit. ``weight_bytes``: of the tensor-parallel shard of the whole model, that of an engine."""
    return weight_bytes / (hardware.refit_gb_s * GIGA)


def merge(weight_bytes: float, hardware: HardwareConfig) -> float:
    """Seconds to merge adapters into ``weight_bytes`` of a rank, and to put the original back from the host."""
    read_and_written = 2 * weight_bytes / (hardware.memory_gb_s * hardware.memory_reached * GIGA)
    return read_and_written + weight_bytes / (hardware.host_link_gb_s * hardware.links_reached * GIGA)


def swap(size: float, hardware: HardwareConfig) -> float:
    """Seconds to move ``size`` bytes to the host and as many back.

    Optimizers are swapped at the end of a phase; a policy and its reference twice.
    """
    return 2 * size / (hardware.host_link_gb_s * hardware.links_reached * GIGA)
