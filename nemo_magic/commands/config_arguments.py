"""The options of commands that take a configuration: ``-cn``, ``-cd``, ``--dry-run`` and overrides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nemo_magic.config import ConfigError, MagicConfig, compose, to_yaml
from nemo_magic.config.secrets import mask_text
from nemo_magic.game.episode import Role


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``-cn NAME [-cd DIR] [--dry-run [--print KEY,…]] [key=value …]``."""
    parser.add_argument("-cn", "--config-name", required=True, metavar="NAME", help="a file of conf/, e.g. magic")
    parser.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own, searched before conf/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan")
    parser.add_argument(
        "--print",
        dest="printed",
        metavar="KEY,…",
        default="",
        help="with --dry-run: first a line KEY=VALUE of each of these, for scripts: as it is, without YAML's quotes",
    )
    add_overrides(parser, "game.schedule.freq=5 sets a key, game=paper takes a group's file")


def add_overrides(parser: argparse.ArgumentParser, examples: str) -> None:
    """``[key=value …]``, of which ``examples`` gives some; ``args.overrides`` has them."""
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"overrides are Hydra's: {examples}")


def add_trust_weights(parser: argparse.ArgumentParser) -> None:
    """``--trust-weights``; see ``trust_overrides`` for commands that take a configuration."""
    parser.add_argument(
        "--trust-weights", action="store_true", help="unpickle weights without restriction: they may run any code"
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    """``--resume``, as ``runtime.resume.decide`` reads it."""
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|FOLDER",
        help="go on from the newest checkpoint of the run's folder (auto), from none, or from a given one",
    )


def trust_overrides(args: argparse.Namespace) -> list[str]:
    """The overrides that ``--trust-weights`` stands for."""
    trusts = getattr(args, "trust_weights", False)
    return [f"actors.{role}.trust_weights=true" for role in Role] if trusts else []


def compose_config(args: argparse.Namespace) -> MagicConfig:
    """The checked configuration that a command line asks for; the values that ``--print`` names are printed.

    Raises:
        ConfigError: it cannot be run, or ``--print`` names what is no single value.
    """
    cfg = compose(args.config_name, [*args.overrides, *trust_overrides(args)], args.config_dir, args.command)
    if args.printed and not args.dry_run:
        raise ConfigError("--print is a part of --dry-run: give both")
    for line in [value_line(cfg, key) for key in args.printed.split(",") if key]:
        print(line)
    return cfg


def value_line(cfg: MagicConfig, key: str) -> str:
    """``KEY=VALUE`` of a dotted key, the value as it is.

    Raises:
        ConfigError: there is no such key, or its value is not one line of text.
    """
    value: Any = asdict(cfg)
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ConfigError(f"--print {key}: there is no such key")
        value = value[part]
    if not isinstance(value, str | int | float) or len(str(value).splitlines()) > 1:
        raise ConfigError(f"--print {key}: it is not a single line of text, but {value!r}")
    return f"{key}={value}"


def print_dry_run(cfg: MagicConfig, description: str | None = None, absent: Sequence[str] = ()) -> int:
    """Print the resolved configuration, below it as YAML comments a description and what is ``absent`` of the files
    that a run would read here; return the exit status 0, for the run may be meant for another machine.

    The output of ``--dry-run`` is itself a configuration.
    """
    print(to_yaml(cfg), end="")
    lines = [] if description is None else description.splitlines()
    lines += [f"missing   {text}" for text in absent]
    if lines:
        print("\n" + "\n".join(f"# {mask_text(line, cfg)}".rstrip() for line in lines))
    return 0
