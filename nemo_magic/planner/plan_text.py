"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nemo_magic.config.schema import MagicConfig
from nemo_magic.planner.estimate import Plan

_GIB, _TB = float(1 << 30), 1e12


def describe_plan(cfg: MagicConfig, plan: Plan) -> Iterable[str]:
    """Lines: memory, seconds of a step, the run as a whole, and whether it fits."""
    hardware, world = cfg.hardware, plan.world
    yield (
        f"{cfg.name} on {cfg.trainer.num_nodes} × {cfg.trainer.devices} devices ({hardware.name}): TP {world.tp} × "
        f"PP {world.pp} × DP {world.dp}, updates of {plan.microbatches} × {plan.micro_batch_size} rows on a rank"
    )
    counts = {f"{count:,}" for count in plan.parameters.values()}
    yield f"{' and '.join(str(role) for role in plan.parameters)}: {' and '.join(counts)} parameters"
    if plan.trainable != plan.parameters:
        learning = " and ".join(f"{count:,}" for count in dict.fromkeys(plan.trainable.values()))
        yield f"Of these {learning} learn; the rest is frozen{', and there once' if 'starting' in plan.memory else ''}"
    moments = {name: {part: size / _GIB for part, size in parts.items()} for name, parts in plan.memory.items()}
    yield from ("", f"Device memory in GiB, of {plan.available / _GIB:.1f} that can be counted on")
    yield from _table(moments, 1)
    yield from ("", f"Host memory of a node in GiB, of {plan.host_available / _GIB:,.0f}")
    yield from _table({"": {part: size / _GIB for part, size in plan.host.items()}}, 1)
    yield from (
        "",
        f"A checkpoint: {_size(plan.checkpoint)}, {plan.checkpoint_seconds:.0f} s to write in the background",
    )
    yield from ("", "Seconds of a step")
    yield from _table({f"{role} learns": parts for role, parts in plan.per_role.items()} | {"mean": plan.seconds}, 1)
    yield from (
        "",
        f"The run: {plan.steps} steps, {plan.hours:.1f} h, {plan.gpu_hours:,.0f} GPU-hours, "
        f"{plan.kilowatt_hours:,.0f} kWh (judge's nodes not counted)",
        "",
        *_assumptions(cfg, plan),
        "",
        _verdict(plan),
    )


def _size(count: float) -> str:
    return f"{count / _TB:.2f} TB" if count >= 0.01 * _TB else f"{count / 1e9:.2f} GB"


def _table(columns: Mapping[str, Mapping[str, float]], digits: int) -> Iterable[str]:
    """Parts as rows, a sum below."""
    names = list(dict.fromkeys(name for parts in columns.values() for name in parts))
    left = max(map(len, [*names, "sum"]))
    widths = [max(len(column), 10) for column in columns]
    if any(columns):
        yield _row("", list(columns), left, widths)
    for name in names:
        cells = [f"{parts[name]:,.{digits}f}" if name in parts else "" for parts in columns.values()]
        yield _row(name, cells, left, widths)
    yield _row("sum", [f"{sum(parts.values()):,.{digits}f}" for parts in columns.values()], left, widths)


def _row(name: str, cells: Sequence[str], left: int, widths: Sequence[int]) -> str:
    return f"  {name:<{left}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _assumptions(cfg: MagicConfig, plan: Plan) -> Iterable[str]:
    h = cfg.hardware
    texts = "; ".join(f"the {role} reads {read} and writes {written} tokens"
                      for role, (read, written) in plan.lengths.items())  # fmt: skip
    yield (
        f"Assumed of the texts (plan.*): {texts}; rows decoded together wait for {cfg.plan.longest:.0%} of "
        f"length_params.max_length; judges answer {cfg.plan.judge_items_per_second:g} items a second."
    )
    wanted = cfg.plan.lengths()
    yield from (
        f"The {role} cannot have texts of {wanted[role][0]} and {wanted[role][1]} tokens, as plan.* says: they are cut "
        f"to its limits (actors.{role}.length_params, model.encoder_seq_length)."
        for role, lengths in plan.lengths.items()
        if lengths != wanted[role]
    )
    yield (
        f"Assumed of the hardware (hardware.*): {h.tflops:g} TFLOP/s, of which {h.flops_reached:.0%} are reached; "
        f"{h.memory_gb_s:g} GB/s of memory, {h.memory_reached:.0%}; links of {h.nvlink_gb_s:g} and {h.network_gb_s:g} "
        f"GB/s, {h.links_reached:.0%}; {h.layer_floor_us:g} µs for a layer at least, {h.decode_layer_us:g} µs in a "
        f"decode step; refit at {h.refit_gb_s:g} GB/s; storage {h.storage_gb_s:g} GB/s."
    )
    yield "Published steps took 9 to 31 % longer than these assumptions, of H100, make of them (docs/planner.md)."


def _verdict(plan: Plan) -> str:
    fullest = max(plan.memory, key=lambda moment: sum(plan.memory[moment].values()))
    if plan.needed > plan.available:
        return (
            f"It does not fit: {fullest} needs {plan.needed / _GIB:.1f} GiB of a device, of which "
            f"{plan.available / _GIB:.1f} can be counted on"
        )
    if not plan.fits:
        needed, available = sum(plan.host.values()) / _GIB, plan.host_available / _GIB
        return f"It does not fit: a node's host needs {needed:,.0f} GiB of {available:,.0f}"
    return f"It fits: {fullest} needs most, {plan.needed / _GIB:.1f} of {plan.available / _GIB:.1f} GiB"


def describe_layouts(layouts: Sequence[Plan]) -> Iterable[str]:
    """Lines: a table of layouts, the fastest first."""
    yield ""
    if not layouts:
        yield "No layout of these nodes fits: more nodes, shorter rows, or activations_checkpoint_granularity=full"
        return
    yield "The fastest layouts that fit these nodes"
    yield "  TP  PP  DP  rows  recompute     GiB  s/step"
    for plan in layouts:
        world = plan.world
        yield (
            f"  {world.tp:>2}  {world.pp:>2}  {world.dp:>2}  {plan.micro_batch_size:>4}  "
            f"{plan.recompute or 'none':<9}  {plan.needed / _GIB:>6.1f}  {plan.step_seconds:>6.1f}"
        )
