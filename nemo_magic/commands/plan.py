"""``nemo-magic plan``: what a run takes, as text for people or as JSON."""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nemo_magic.actors.builder import require_megatron_core
from nemo_magic.actors.errors import BackendError
from nemo_magic.commands.config_arguments import add_config_arguments, compose_config, print_dry_run
from nemo_magic.config.errors import ConfigError
from nemo_magic.config.validation import models
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig

if TYPE_CHECKING:
    from nemo_magic.planner.estimate import Plan

_LAYOUTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, and ``--json``."""
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="the same as JSON, in bytes")


def run(args: argparse.Namespace) -> int:
    """Print the plan, and return 0 where it fits the devices and hosts, 1 where it does not.

    Raises:
        ConfigError: the ranks have no GPU, the size of a vocabulary is not known, or Megatron is not installed, or in
            another version.
    """
    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg)
    if cfg.trainer.accelerator == "cpu":
        raise ConfigError(
            "a plan counts GPUs (hardware.*), and trainer.accelerator=cpu has none: nothing is known here of what a "
            "step takes on this machine; `nemo-magic train` with game.max_steps=2 shows it (timers/step, "
            "memory/update_gib)"
        )
    # Of packages that are not here and of settings that only running ranks need.
    warnings.simplefilter("ignore")
    try:
        from nemo_magic.planner.estimate import plan_of
        from nemo_magic.planner.plan_text import describe_layouts, describe_plan
        from nemo_magic.planner.search import best
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a plan asks Megatron-core for the shapes, and {error.name} is not installed: run it in the environment "
            "of `make venv` (backend=megatron: `make venv-current`), or in the container"
        ) from error
    try:
        require_megatron_core(cfg.backend)
    except BackendError as error:
        raise ConfigError(f"a plan asks the backend's Megatron-core for the shapes: {error}") from error
    vocabularies = {
        role: vocabulary(model, role) for role, model in models(cfg).items() if not cfg.actors.of(role).is_remote
    }
    plan = plan_of(cfg, vocabularies)
    layouts = best(cfg, vocabularies, _LAYOUTS) if cfg.plan.search else []
    if args.json:
        print(json.dumps({"plan": _to_json(plan), "layouts": [_to_json(layout) for layout in layouts]}, indent=2))
    else:
        print("\n".join([*describe_plan(cfg, plan), *(describe_layouts(layouts) if cfg.plan.search else [])]))
    return 0 if plan.fits else 1


def vocabulary(model: ModelConfig, role: Role) -> int:
    """How many ids the tokenizer has: ``model.vocab_size``, or the tokenizer's own word."""
    if model.vocab_size is not None:
        return model.vocab_size
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(model.tokenizer.type, trust_remote_code=False))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the {role}'s model.tokenizer.type={model.tokenizer.type} cannot be read here "
            f"({str(error).splitlines()[0]}): say how many ids it has with model.vocab_size"
        ) from error


def _to_json(plan: Plan) -> dict[str, Any]:
    """As JSON has it: sizes in bytes, and what follows from them."""
    derived = {name: getattr(plan, name) for name in ("needed", "step_seconds", "gpu_hours")}
    return json.loads(json.dumps(asdict(plan) | derived, default=str))
