"""``nemo-magic sandbox``: write the sandbox's files. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse

from nemo_magic.commands.config_arguments import add_config_arguments, compose_config, print_dry_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a configuration."""
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write tokenizer, seeds and pools to ``sandbox.folder``."""
    from nemo_magic.sandbox.corpus import prepare

    cfg = compose_config(args)
    if args.dry_run:
        return print_dry_run(cfg)
    print(f"the sandbox is in {prepare(cfg.sandbox)}")
    return 0
