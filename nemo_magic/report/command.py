"""``nemo-magic report RUN …``: one or several runs as one page. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nemo_magic.report.records import REPORT_FILE

POINTS = 3000
"""Points of a curve, all runs of a page together."""


def add_parser(commands: Any) -> None:
    """``nemo-magic report``."""
    about = "one self-contained HTML page of one or several runs: the game, what it cost, alarms, conversations"
    parser = commands.add_parser("report", help=about, description=about, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run's folder")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"where to write it ({REPORT_FILE} in the first run's folder)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 1 for a run whose files cannot be read. Raises FileNotFoundError for a folder without a run."""
    from nemo_magic.report.page import write  # Jinja2 and plotly.js are wanted here only
    from nemo_magic.report.run_folder import RunFolder

    points = max(200, min(1000, POINTS // len(args.runs)))
    try:
        runs = [RunFolder(folder, points) for folder in args.runs]
        names = [one.name for one in runs]
        for one in runs:
            if names.count(one.name) > 1:
                one.name = str(one.path)
        path = write(runs, args.out or args.runs[0] / REPORT_FILE)
    except ValueError as error:
        print(f"nemo-magic report: {error}", file=sys.stderr)
        return 1
    rows = sum(one.rows for one in runs)
    print(f"{path}: {rows:,} rows of figures of {len(runs)} run(s), {path.stat().st_size / 1e6:.1f} MB")
    return 0
