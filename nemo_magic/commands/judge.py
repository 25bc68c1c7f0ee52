"""``nemo-magic judge``: serve the configured judge until interrupted. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse

from nemo_magic.commands.config_arguments import add_config_arguments, compose_config, print_dry_run
from nemo_magic.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration."""
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ConfigError: the guard cannot be built as configured.
        FileNotFoundError: a file of the guard is missing; the message names it.
        JudgeError: the address cannot be bound.
    """
    from nemo_magic.judge.errors import JudgeError
    from nemo_magic.judge.server import log_to_stderr, serve

    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg)
    log_to_stderr(cfg.judge.server.log_texts)
    try:
        serve(cfg.judge, say=lambda text: print(text, flush=True))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        server = cfg.judge.server
        raise JudgeError(f"judge.server.host={server.host}, port={server.port}: {error}") from error
    return 0
