"""``nemo-magic capability``: lm-evaluation-harness against a served model. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from nemo_magic.commands.config_arguments import add_config_arguments, compose_config, print_dry_run
from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.evaluation.capability import capability_table, command_lines, read_capability
from nemo_magic.formatting import markdown_table
from nemo_magic.runtime.errors import TrainingError

RESULTS = "lm_eval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration, and ``--run``."""
    add_config_arguments(parser)
    parser.add_argument("--run", action="store_true", help="run the printed command lines, and print their results")


def run(args: argparse.Namespace) -> int:
    """Print the command lines of the harness; with ``--run`` run them, one after the other, and print their results.

    Where ``eval.capability.results`` is given, its results are printed and nothing is run.

    Raises:
        ConfigError: a key is missing, or the harness is not installed.
        TrainingError: a call of the harness failed.
    """
    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg)
    capability = cfg.eval.capability
    if capability.results is not None:
        return _print_results(cfg, capability.results)
    output = str(Path(cfg.exp_manager.explicit_log_dir) / RESULTS)
    try:
        calls = command_lines(capability, capability.max_length or cfg.model.encoder_seq_length, output)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for words in calls:
        print(f"lm_eval {shlex.join(words)}", flush=True)
    if not args.run:
        return 0
    if find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed here: pip install 'lm_eval[api]'")
    for words in calls:
        done = subprocess.run([sys.executable, "-m", "lm_eval", *words], check=False, env=_environment(cfg))
        if done.returncode:
            raise TrainingError(f"lm_eval ended with status {done.returncode}: {shlex.join(words)}")
    return _print_results(cfg, output)


def _environment(cfg: MagicConfig) -> dict[str, str]:
    """The server's token is in the variable from which the harness's client takes its key."""
    name = cfg.serve.token_env
    return os.environ | ({"OPENAI_API_KEY": os.environ.get(name, "")} if name else {})


def _print_results(cfg: MagicConfig, path: str) -> int:
    rows, notes = read_capability(path, cfg.eval.capability.tasks, cfg.eval.model)
    print("\n".join(["", markdown_table(capability_table(rows)), "", *(f"- {note}" for note in notes)]), flush=True)
    print(f"\nbeside an evaluation's figures: eval.capability.results={path}", flush=True)
    return 0
