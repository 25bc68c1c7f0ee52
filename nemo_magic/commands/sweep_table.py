"""``nemo-magic sweep-table RUN …``: runs side by side in one table. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nemo_magic.report.sweep_table import markdown, outcomes_of, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs' folders, and where to write the table as well."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run's folder")
    parser.add_argument(
        "--into", metavar="FOLDER", type=Path, help="also write table.md, table.csv and table.json there"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table as Markdown; exit status 1 where a run is not there or cannot be read, after all rows."""
    outcomes, faults = outcomes_of(args.runs)
    if args.into is not None:
        write(outcomes, args.into)
    print(markdown(outcomes), end="")
    for fault in faults:
        print(f"nemo-magic sweep-table: {fault}", file=sys.stderr)
    return 1 if faults else 0
