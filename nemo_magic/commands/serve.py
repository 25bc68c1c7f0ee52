"""``nemo-magic serve``: one role's actor behind an OpenAI-compatible server. Imports torch and NeMo in a rank only."""

from __future__ import annotations

import argparse
import signal

from nemo_magic.commands.config_arguments import (
    add_config_arguments,
    add_trust_weights,
    compose_config,
    print_dry_run,
)
from nemo_magic.commands.ranks import run_on_ranks
from nemo_magic.config import MagicConfig
from nemo_magic.config.inputs import missing, refuse_missing
from nemo_magic.config.validation import models
from nemo_magic.convert.compatibility import refuse_other_models
from nemo_magic.runtime.preemption import SAVE_SIGNALS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, and ``--trust-weights``."""
    add_config_arguments(parser)
    add_trust_weights(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ConfigError: the actor cannot be served, or its address cannot be bound.
    """
    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg, absent=missing(cfg, "serve"))
    refuse_other_models(cfg, models(cfg, "serve"))
    refuse_missing(cfg, "serve")
    signals = (*SAVE_SIGNALS, signal.SIGINT)
    return run_on_ranks(
        args, cfg, _work, needs_judge=False, forwarded_signals=signals, modules=["nemo_magic.serving.server"]
    )


def _work(cfg: MagicConfig) -> None:
    from nemo_magic.serving.server import serve

    serve(cfg)
