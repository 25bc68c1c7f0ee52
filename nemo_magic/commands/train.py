"""``nemo-magic train``: co-train attacker and defender (phase 2). Imports torch and NeMo in a rank only."""

from __future__ import annotations

import argparse
from functools import partial

from nemo_magic.commands.config_arguments import (
    add_config_arguments,
    add_resume,
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
from nemo_magic.runtime.checkpoint_paths import FOLDER as CHECKPOINTS
from nemo_magic.runtime.resume import decide, start_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, ``--trust-weights`` and ``--resume``."""
    add_config_arguments(parser)
    add_trust_weights(parser)
    add_resume(parser)


def run(args: argparse.Namespace) -> int:
    """Train on the ranks of the configuration.

    Raises:
        ConfigError: the run cannot be run, or not go on from what there is.
        TrainingError, JudgeError, RemoteError: the run failed.
    """
    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg, describe(cfg, "train"), missing(cfg, "train"))
    refuse_other_models(cfg, models(cfg, "train"))
    with own_folder(cfg) as owner:
        refuse_results(cfg, CHECKPOINTS)
        resume = decide(cfg, args.resume, "train")
        refuse_missing(cfg, "train", starts=not start_weights(cfg, resume.checkpoint))

        def work(cfg: MagicConfig) -> None:
            from nemo_magic.training.coevolution import train

            train(cfg, resume)

        modules = ["nemo_magic.training.coevolution"]
        prepare = partial(describe_run, cfg, resume)
        return run_on_ranks(args, cfg, work, needs_judge=True, prepare=prepare, modules=modules, owner=owner)
