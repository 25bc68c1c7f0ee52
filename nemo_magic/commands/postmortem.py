"""``nemo-magic postmortem RUN``: which rank a run died of. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_magic.runtime.postmortem import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")


def run(args: argparse.Namespace) -> int:
    """Print what the run's files say, the culprit last."""
    for line in report(args.run):
        print(line)
    return 0
