"""``nemo-magic sft``: warm up one role on a pool of examples (phase 1). Imports torch and NeMo in a rank only."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

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
from nemo_magic.launcher import is_first_process
from nemo_magic.report.records import read_config
from nemo_magic.runtime.checkpoint_paths import FOLDER as CHECKPOINTS
from nemo_magic.runtime.checkpoint_paths import SFT_WEIGHTS, remove_checkpoints
from nemo_magic.runtime.resume import changed, decide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, ``--trust-weights`` and ``--resume``."""
    add_config_arguments(parser)
    add_trust_weights(parser)
    add_resume(parser)


def run(args: argparse.Namespace) -> int:
    """Train on the ranks of the configuration. A warm-up that is done is not done again.

    Raises:
        ConfigError: the warm-up cannot be run, or not go on from what there is.
        DataError: its pool cannot be used.
        TrainingError: the warm-up failed.
    """
    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg, describe(cfg, "sft"), missing(cfg, "sft"))
    refuse_other_models(cfg, models(cfg, "sft"))
    refuse_missing(cfg, "sft")
    with own_folder(cfg) as owner:
        if args.resume == "auto" and _is_done(cfg):
            return 0
        refuse_results(cfg, CHECKPOINTS)
        resume = decide(cfg, args.resume, "sft")

        def work(cfg: MagicConfig) -> None:
            from nemo_magic.training.sft import run_sft

            run_sft(cfg, resume)

        modules = ["nemo_magic.training.sft"]
        prepare = partial(describe_run, cfg, resume)
        return run_on_ranks(args, cfg, work, needs_judge=False, prepare=prepare, modules=modules, owner=owner)


def _is_done(cfg: MagicConfig) -> bool:
    """Whether the folder has the weights of this very warm-up. Checkpoints that a kill has left beside them go."""
    folder = Path(cfg.exp_manager.explicit_log_dir)
    weights = folder / SFT_WEIGHTS
    try:
        is_same = (weights / "metadata.json").is_file() and not changed(read_config(folder), cfg, "sft")
    except ValueError:  # config.yaml is none
        return False
    if not is_same:
        return False
    if is_first_process():
        remove_checkpoints(folder / CHECKPOINTS)
        print(f"{cfg.sft.model_role} is warmed up: weights in {weights}", flush=True)
    return True
