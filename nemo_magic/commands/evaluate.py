"""``nemo-magic evaluate``: measure a defender on benchmarks. Imports torch and NeMo in a rank only."""

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
from nemo_magic.config import MagicConfig
from nemo_magic.config.evaluation import describe_evaluation, needs_world
from nemo_magic.config.inputs import missing, refuse_missing
from nemo_magic.config.validation import models
from nemo_magic.convert.compatibility import refuse_other_models
from nemo_magic.evaluation.load_tasks import describe_contents
from nemo_magic.evaluation.results import JSON_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, and ``--trust-weights``."""
    add_config_arguments(parser)
    add_trust_weights(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate on the ranks of the configuration, or in one process where no Megatron actor takes part.

    Raises:
        ConfigError: the evaluation cannot be run.
        EvaluationError, JudgeError, RemoteError: the evaluation failed.
    """
    cfg = compose_config(args)
    if args.dry_run:
        contents = describe_contents(cfg.eval)
        return print_dry_run(cfg, "\n".join([describe_evaluation(cfg), *contents]), missing(cfg, "evaluate"))
    refuse_other_models(cfg, models(cfg, "evaluate"))
    refuse_missing(cfg, "evaluate")
    single_process = not needs_world(cfg)
    with own_folder(cfg) as owner:
        refuse_results(cfg, JSON_FILE)
        return run_on_ranks(
            args,
            cfg,
            _work,
            needs_judge=True,
            prepare=partial(describe_run, cfg),
            single_process=single_process,
            modules=["nemo_magic.evaluation.runner"],
            owner=owner,
        )


def _work(cfg: MagicConfig) -> None:
    from nemo_magic.evaluation.runner import evaluate

    evaluate(cfg)
