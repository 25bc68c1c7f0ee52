"""``nemo-magic COMMAND …``: one table of commands, each a file of ``nemo_magic.commands``.

A command's module has ``add_arguments(parser)`` and ``run(args)``. Only the module of the command that was given is
imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from nemo_magic import __version__

EXIT_RUNTIME, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 130
EXIT_PREEMPTED = 75
"""The run was asked to end, has saved, and goes on when the same command is given again (EX_TEMPFAIL)."""

GROUPS = {
    "train": {
        "train": "co-train attacker and defender (phase 2)",
        "sft": "warm up one role on a pool of examples (phase 1)",
    },
    "measure": {
        "evaluate": "measure a defender on benchmarks, your own copies of them",
        "capability": "have lm-evaluation-harness measure a served model, and print its results",
        "cross-play": "play every attacker a run kept against every defender it kept",
        "judge-check": "have running judges judge a labelled file: agreement, κ, latency; or check one's protocol",
    },
    "serve": {
        "serve": "serve one role's actor to OpenAI's clients until interrupted",
        "judge": "serve the configured judge until interrupted",
    },
    "understand": {
        "report": "write one self-contained HTML page of runs and evaluations: game, cost, figures, conversations",
        "analyse": "say what a run's attacker did: strategies, hybrids, novelty, diversity, intent, over steps",
        "sweep-table": "put runs side by side in one table: how each ended, and how good its defender is",
        "postmortem": "say which rank a failed run died of, where it was and on which host",
    },
    "prepare": {
        "sandbox": "write the sandbox's files: tokenizer, seeds, pools",
        "plan": "say what a run takes: memory, seconds, GPU-hours, and the best layout",
        "convert": "bring published weights to Megatron's format, and trained ones back",
        "seeds-export": "write seeds as a red-teaming tool reads them (docs/red_teaming.md)",
    },
}
"""Group → command → its line of ``nemo-magic --help``."""

COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}


EXTRAS = {
    **dict.fromkeys(("fastapi", "prometheus_client", "uvicorn"), "judge"),
    **dict.fromkeys(("jinja2", "markupsafe", "matplotlib", "plotly"), "report"),
    "sacrebleu": "analysis",
}
"""Module → the extra of pyproject.toml that brings it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    0: it is done. 1: it failed. 2: it could not have run. 75: it was preempted and has saved. 130: it was interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command: str = _top_parser().parse_args(argv[:1]).command
    try:
        module = command_module(command)
        status: int = module.run(_parse(command, module, argv))
        return status
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(f"nemo-magic {command}: {error}: pip install 'nemo-magic[{EXTRAS[error.name]}]'", file=sys.stderr)
        return EXIT_CONFIG
    except _expected_errors() as error:
        return _exit_status(command, error, anew=any(word.startswith("--resume") for word in argv))
    except KeyboardInterrupt:
        print(f"nemo-magic {command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def command_module(command: str) -> ModuleType:
    """The module of ``nemo_magic.commands`` that has a command's ``add_arguments`` and ``run``."""
    return import_module(f"nemo_magic.commands.{command.replace('-', '_')}")


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = ["Co-evolving attacker–defender safety training (MAGIC) on NeMo-Aligner and Megatron-core."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<{width}}  {about}" for name, about in commands.items())]
    parser = argparse.ArgumentParser(
        prog="nemo-magic",
        usage="nemo-magic COMMAND …",
        description="\n".join(lines),
        epilog="nemo-magic COMMAND --help says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nemo-magic {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _parse(command: str, module: ModuleType, argv: list[str]) -> argparse.Namespace:
    """``command``, ``argv`` and ``main`` are part of the result: a launcher starts ranks with the same words."""
    parser = argparse.ArgumentParser(prog=f"nemo-magic {command}", description=COMMANDS[command], allow_abbrev=False)
    module.add_arguments(parser)
    # argparse takes the first positionals that stand together; overrides may stand between options as well.
    args, rest = parser.parse_known_args(argv[1:])
    if options := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option: {' '.join(options)}")
    if "overrides" in args:
        args.overrides += rest
    elif rest:
        parser.error(f"unknown argument: {' '.join(rest)}")
    args.command, args.argv, args.main = command, argv, main
    return args


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a command answers with one line instead of a traceback. Imported once something has failed."""
    from nemo_magic.actors.errors import ModelError, RemoteError
    from nemo_magic.analysis.errors import AnalysisError
    from nemo_magic.config import ConfigError
    from nemo_magic.data.errors import DataError
    from nemo_magic.evaluation.errors import EvaluationError
    from nemo_magic.hf_format.errors import ConvertError
    from nemo_magic.judge.errors import JudgeError
    from nemo_magic.runtime.errors import TrainingError

    return (
        AnalysisError, ConfigError, ConvertError, DataError, EvaluationError, JudgeError, ModelError, RemoteError,
        TrainingError, OSError,
    )  # fmt: skip


def _exit_status(command: str, error: Exception, anew: bool) -> int:
    """Print an expected error, and return the status that says what kind it is of. ``anew``: the same command would
    begin where it began."""
    from nemo_magic.config import ConfigError
    from nemo_magic.runtime.errors import Preempted
    from nemo_magic.runtime.started_rank import is_rank_zero

    if isinstance(error, ConfigError):
        print(f"nemo-magic {command}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    # All ranks fail alike; the first one prints.
    if is_rank_zero():
        same = "the same command without --resume" if anew else "the same command"
        goes_on = f"; {same} goes on from there" if isinstance(error, Preempted) else ""
        print(f"nemo-magic {command}: {error}{goes_on}", file=sys.stderr)
    return EXIT_PREEMPTED if isinstance(error, Preempted) else EXIT_RUNTIME


if __name__ == "__main__":
    sys.exit(main())
