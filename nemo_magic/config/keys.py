"""Which keys exist, and which key was meant where an unknown one is given."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from nemo_magic.config.schema import MagicConfig

Tree = Mapping[str, "Tree | None"]
"""Key → the keys below it; None below a value; empty where any key may stand."""

RENAMED_KEYS = {
    # Keys of NeMo-Aligner's actor configurations
    "model.data.data_prefix": "data",
    "model.ppo.length_params": "actors.<role>.length_params",
    "model.ppo.num_rollout_samples": "game.batch_size",
    "model.ppo.num_val_samples": "game.num_val_samples",
    "model.ppo.ratio_eps": "grpo.ratio_clip_low and grpo.ratio_clip_high",
    "model.ppo.sampling_params": "actors.<role>.sampling_params",
    "model.precision": "trainer.precision",
    "model.seed": "seed",
    "pretrained_checkpoint.restore_from_path": "actors.<role>.restore_from_path",
    "trainer.max_steps": "game.max_steps",
    "trainer.ppo.initial_policy_kl_penalty": "grpo.kl_beta",
    "trainer.ppo.max_steps": "game.max_steps",
    "trainer.ppo.val_check_interval": "game.val_check_interval",
    # Keys of this project
    "alarms.mismatch.surprise": "alarms.mismatch.neg_logprob_minus_entropy",
    "eval.observe": "eval.extra_verdict_fields",
    "game.bare_share": "game.raw_prompt_fraction",
    "game.observe": "game.extra_verdict_fields",
    "game.probe": "game.strategy_sweep",
    "game.rewrites_ahead": "game.attack_prefetch_steps",
    "generation.trt_llm.enable": "generation.engine",
}
"""Old key → the key of the same setting here; keys below an old key keep their names."""

RENAMED_METRICS = {"train_optim/surprise": "train_optim/neg_logprob_minus_entropy"}
"""Old name of a metric → its name."""


@cache
def schema_tree() -> Tree:
    """The keys of a run."""
    return _tree(MagicConfig)


def unknown_keys(config: Mapping[Any, Any], tree: Tree | None = None, above: str = "") -> list[str]:
    """Full dotted paths in ``config`` that the schema does not have."""
    tree = schema_tree() if tree is None else tree
    unknown = []
    for key, value in config.items():
        path = f"{above}{key}"
        if key not in tree:
            holds_renamed = isinstance(value, Mapping) and any(old.startswith(f"{path}.") for old in RENAMED_KEYS)
            unknown += unknown_keys(value, {}, f"{path}.") if holds_renamed else [path]
        elif isinstance(value, Mapping) and (below := tree[key]):
            unknown += unknown_keys(value, below, f"{path}.")
    return unknown


def is_known(path: str) -> bool:
    """Whether a dotted path is a key, or stands below one that takes any key."""
    tree: Tree | None = schema_tree()
    for part in path.split("."):
        if tree is None:
            return False
        if not tree:
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True


def renamed_metric_problems(cfg: MagicConfig) -> Iterator[str]:
    """One line for every key whose value is the old name of a metric."""
    metrics = {
        "game.early_stop.metric": cfg.game.early_stop.metric,
        "game.schedule.metric.name": cfg.game.schedule.metric.name,
        "exp_manager.checkpoint_callback_params.monitor": cfg.exp_manager.checkpoint_callback_params.monitor,
    }
    for key, name in metrics.items():
        if name in RENAMED_METRICS:
            yield f"{key}={name}: unknown metric; did you mean {RENAMED_METRICS[name]}?"


def nearest(path: str) -> str:
    """The valid key that reads most like ``path``, judged by its whole path and by its last part."""
    for old, new in RENAMED_KEYS.items():
        if path == old or path.startswith(f"{old}."):
            return new + path[len(old) :]
    return max(_paths(schema_tree()), key=lambda known: _similarity(path, known))


def unknown_key_message(path: str) -> str:
    """Say that there is no such key, and name the one that was meant."""
    return f"unknown key {path}; did you mean {nearest(path)}?"


def _similarity(path: str, known: str) -> float:
    last_part = SequenceMatcher(None, path.rpartition(".")[2], known.rpartition(".")[2]).ratio()
    return last_part + SequenceMatcher(None, path, known).ratio()


def _paths(tree: Tree, above: str = "") -> Iterator[str]:
    for key, below in tree.items():
        yield f"{above}{key}"
        if below:
            yield from _paths(below, f"{above}{key}.")


def _tree(cls: type) -> Tree:
    hints = typing.get_type_hints(cls)
    # ``part_of``: a free mapping whose keys are nevertheless those of a dataclass.
    return {f.name: _below(f.metadata.get("part_of", hints[f.name])) for f in fields(cls)}


def _below(hint: Any) -> Tree | None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if is_dataclass(hint) and isinstance(hint, type):
        return _tree(hint)
    return {} if typing.get_origin(hint) is dict or hint is dict else None
