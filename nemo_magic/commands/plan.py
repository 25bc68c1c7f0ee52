"""``nemo-magic plan``: the plan of a configuration, as text for people or as JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nemo_magic.config.errors import ConfigError
from nemo_magic.config.schema import MagicConfig
from nemo_magic.config.validation import models
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig

_LIST = 5
_GIB, _TB = float(1 << 30), 1e12


def run(cfg: MagicConfig, as_json: bool) -> int:
    """Print the plan of ``cfg``, and return 0 where it fits the devices and hosts, 1 where it does not.

    Raises:
        ConfigError: the size of a vocabulary is not known, or Megatron is not installed.
    """
    # Of packages that are not here and of settings that only running ranks need.
    warnings.simplefilter("ignore")
    try:
        from nemo_magic.planner.estimate import plan_of
        from nemo_magic.planner.search import best
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a plan asks Megatron-core for the shapes, and {error.name} is not installed: run it in the environment "
            "of `make venv`, or in the container"
        ) from error
    vocabularies = {
        role: vocabulary(model, role) for role, model in models(cfg).items() if not cfg.actors.of(role).is_remote
    }
    plan = plan_of(cfg, vocabularies)
    layouts = best(cfg, vocabularies, _LIST) if cfg.plan.search else []
    if as_json:
        print(json.dumps({"plan": _plain(plan), "layouts": [_plain(other) for other in layouts]}, indent=2))
    else:
        print("\n".join([*_text(cfg, plan), *(_layouts(layouts) if cfg.plan.search else [])]))
    return 0 if plan.fits else 1


def vocabulary(model: ModelConfig, role: Role) -> int:
    """How many ids the tokenizer has: ``model.vocab_size``, or the tokenizer's own word."""
    if model.vocab_size is not None:
        return model.vocab_size
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(model.tokenizer.type))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the {role}'s model.tokenizer.type={model.tokenizer.type} cannot be read here "
            f"({str(error).splitlines()[0]}): say how many ids it has with model.vocab_size"
        ) from error


def _plain(plan: Any) -> dict[str, Any]:
    """As JSON has it: sizes in bytes, and what follows from them."""
    derived = {name: getattr(plan, name) for name in ("needed", "step_seconds", "gpu_hours")}
    return json.loads(json.dumps(asdict(plan) | derived, default=str))


def _text(cfg: MagicConfig, plan: Any) -> Iterable[str]:
    hardware, world = cfg.hardware, plan.world
    yield (
        f"{cfg.name} on {cfg.trainer.num_nodes} × {cfg.trainer.devices} devices ({hardware.name}): TP {world.tp} × "
        f"PP {world.pp} × DP {world.dp}, updates of {plan.microbatches} × {plan.micro_batch_size} rows on a rank"
    )
    counts = {f"{count:,}" for count in plan.parameters.values()}
    yield f"{' and '.join(str(role) for role in plan.parameters)}: {' and '.join(counts)} parameters"
    moments = {name: {part: size / _GIB for part, size in parts.items()} for name, parts in plan.memory.items()}
    yield from ("", f"Device memory in GiB, of {plan.available / _GIB:.1f} that can be counted on")
    yield from _table(moments, 1)
    yield from ("", f"Host memory of a node in GiB, of {plan.host_available / _GIB:,.0f}")
    yield from _table({"": {part: size / _GIB for part, size in plan.host.items()}}, 1)
    yield from (
        "",
        f"A checkpoint: {plan.checkpoint / _TB:.2f} TB, {plan.checkpoint_seconds:.0f} s to write in the background",
    )
    yield from ("", "Seconds of a step")
    yield from _table({f"{role} learns": parts for role, parts in plan.per_role.items()} | {"mean": plan.seconds}, 1)
    yield from (
        "",
        f"The run: {plan.steps} steps, {plan.hours:.1f} h, {plan.gpu_hours:,.0f} GPU-hours, "
        f"{plan.kilowatt_hours:,.0f} kWh (judge's nodes not counted)",
        "",
        *_assumed(cfg),
        "",
        _verdict(plan),
    )


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


def _assumed(cfg: MagicConfig) -> Iterable[str]:
    plan, h = cfg.plan, cfg.hardware
    yield (
        f"Assumed of the texts (plan.*): the attacker reads {plan.attacker_prompt} and writes {plan.attack} tokens, "
        f"the defender {plan.defender_prompt} and {plan.reply}; rows decoded together wait for {plan.longest:.0%} of "
        f"length_params.max_length; judges answer {plan.judge_items_per_second:g} items a second."
    )
    yield (
        f"Assumed of the hardware (hardware.*): {h.tflops:g} TFLOP/s, of which {h.flops_reached:.0%} are reached; "
        f"{h.memory_gb_s:g} GB/s of memory, {h.memory_reached:.0%}; links of {h.nvlink_gb_s:g} and {h.network_gb_s:g} "
        f"GB/s, {h.links_reached:.0%}; {h.layer_floor_us:g} µs for a layer at least, {h.decode_layer_us:g} µs in a "
        f"decode step; refit at {h.refit_gb_s:g} GB/s; storage {h.storage_gb_s:g} GB/s."
    )
    yield "Published steps took 9 to 31 % longer than these assumptions, of H100, make of them (docs/planner.md)."


def _verdict(plan: Any) -> str:
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


def _layouts(layouts: Sequence[Any]) -> Iterable[str]:
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
