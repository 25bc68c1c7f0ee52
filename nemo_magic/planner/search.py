"""The search for the fastest layouts of a configuration's nodes."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_magic.config.errors import ConfigError
from nemo_magic.config.schema import MagicConfig
from nemo_magic.config.validation import validate
from nemo_magic.planner.estimate import Plan, PlanEstimate, Vocabularies, with_layout

_MICRO_BATCHES = (1, 2, 4, 8)
_RECOMPUTE = (None, "selective", "full")


def best(cfg: MagicConfig, vocabularies: Vocabularies, count: int = 5) -> list[Plan]:
    """The plans of the ``count`` fastest layouts of ``cfg``'s ranks that fit, fastest first; empty where none fits."""
    return sorted(_plans_that_fit(cfg, vocabularies), key=lambda plan: plan.step_seconds)[:count]


def _plans_that_fit(cfg: MagicConfig, vocabularies: Vocabularies) -> Iterator[Plan]:
    world, devices = cfg.trainer.num_nodes * cfg.trainer.devices, cfg.trainer.devices
    for tp in _divisors(devices):  # no engine and no fast link reaches beyond a node
        for pp in _divisors(world // tp):
            for recompute in _RECOMPUTE:
                yield from _microbatches(cfg, vocabularies, tp, pp, recompute)


def _microbatches(
    cfg: MagicConfig, vocabularies: Vocabularies, tp: int, pp: int, recompute: str | None
) -> Iterator[Plan]:
    for rows in _MICRO_BATCHES:
        candidate = with_layout(cfg, tp, pp, rows, recompute)
        try:
            validate(candidate, "plan")
        except ConfigError:
            return  # the layout divides nothing, whatever the microbatch
        estimate = PlanEstimate(candidate, vocabularies)
        if not estimate.fits:
            return  # larger ones need more
        plan = estimate.plan()
        yield plan
        if plan.microbatches == 1:
            return  # larger ones are this one


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
