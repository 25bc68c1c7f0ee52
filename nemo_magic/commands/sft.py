"""``nemo-magic sft``: warm up one role on a pool of examples (phase 1). Imports torch and NeMo in a rank only."""

from __future__ import annotations

import argparse
from functools import partial

from nemo_magic.commands.config_arguments import (
    add_config_arguments,
    add_trust_weights,
    compose_config,
    print_dry_run,
)
from nemo_magic.commands.ranks import run_on_ranks
from nemo_magic.commands.run_folder import describe_run, own_folder, refuse_results
from nemo_magic.config import MagicConfig, describe
from nemo_magic.config.inputs import missing, refuse_missing
from nemo_magic.config.validation import models
from nemo_magic.convert.compatibility import refuse_other_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, and ``--trust-weights``."""
    add_config_arguments(parser)
    add_trust_weights(parser)


def run(args: argparse.Namespace) -> int:
    """Train on the ranks of the configuration.

    Raises:
        ConfigError: the warm-up cannot be run.
        DataError: its pool cannot be used.
        TrainingError: the warm-up failed.
    """
    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg, describe(cfg, "sft"), missing(cfg, "sft"))
    refuse_other_models(cfg, models(cfg, "sft"))
    refuse_missing(cfg, "sft")
    modules = ["nemo_magic.training.sft"]
    with own_folder(cfg) as owner:
        refuse_results(cfg, None)
        prepare = partial(describe_run, cfg, begins=True)
        return run_on_ranks(args, cfg, _work, needs_judge=False, prepare=prepare, modules=modules, owner=owner)


def _work(cfg: MagicConfig) -> None:
    from nemo_magic.training.sft import run_sft

    run_sft(cfg)
