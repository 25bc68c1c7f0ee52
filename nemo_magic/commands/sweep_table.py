"""``nemo-magic sweep-table RUN …``: runs side by side in one table. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_magic.report.sweep_table import markdown, outcome, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs' folders, and where to write the table as well."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run's folder")
    parser.add_argument(
        "--into", metavar="FOLDER", type=Path, help="also write table.md, table.csv and table.json there"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table as Markdown. Raises ValueError for a run whose files cannot be read."""
    outcomes = [outcome(folder) for folder in args.runs]
    if args.into is not None:
        write(outcomes, args.into)
    print(markdown(outcomes), end="")
    return 0
