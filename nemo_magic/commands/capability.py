"""nemo-magic capability: lm-evaluation-harness against a served model, and its results as a table."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.evaluation.capability import capability_table, command_lines, read_capability
from nemo_magic.formatting import markdown_table
from nemo_magic.runtime.errors import TrainingError

RESULTS = "lm_eval"


def run(args: argparse.Namespace, cfg: MagicConfig) -> int:
    """Print the command lines of the harness; with ``--run`` run them, one after the other, and tell what they found.

    Where ``eval.capability.results`` is given, what is there is told and nothing is run.

    Raises:
        ConfigError: a key is missing, or the harness is not installed.
        TrainingError: a call of the harness failed.
    """
    capability = cfg.eval.capability
    if capability.results is not None:
        return _tell(cfg, capability.results)
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
        # Where no token is wanted, the harness's client wants one all the same.
        done = subprocess.run([sys.executable, "-m", "lm_eval", *words], check=False, env=_environment(cfg))
        if done.returncode:
            raise TrainingError(f"lm_eval ended with status {done.returncode}: {shlex.join(words)}")
    return _tell(cfg, output)


def _environment(cfg: MagicConfig) -> dict[str, str]:
    """What the harness sends as its key is the server's token."""
    name = cfg.serve.token_env
    return os.environ | ({"OPENAI_API_KEY": os.environ.get(name, "")} if name else {})


def _tell(cfg: MagicConfig, path: str) -> int:
    rows, notes = read_capability(path, cfg.eval.capability.tasks, cfg.eval.model)
    print("\n".join(["", markdown_table(capability_table(rows)), "", *(f"- {note}" for note in notes)]), flush=True)
    print(f"\nbeside an evaluation's figures: eval.capability.results={path}", flush=True)
    return 0
