"""``nemo-magic report FOLDER …``: runs and evaluations as one page. Imports neither torch nor NeMo."""

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
    about = "one self-contained HTML page of runs and evaluations: the game, what it cost, figures, conversations"
    parser = commands.add_parser("report", help=about, description=about, allow_abbrev=False)
    parser.add_argument("runs", metavar="FOLDER", type=Path, nargs="+", help="a run's or an evaluation's")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"where to write it ({REPORT_FILE} in the first run's folder)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 1 for a run whose files cannot be read. Raises FileNotFoundError for a folder without a run."""
    from nemo_magic.report.evaluation_folder import EvaluationFolder, is_evaluation
    from nemo_magic.report.page import write  # Jinja2 and plotly.js are wanted here only
    from nemo_magic.report.run_folder import RunFolder

    evaluated = [folder for folder in args.runs if is_evaluation(folder)]
    played = [folder for folder in args.runs if folder not in evaluated]
    points = max(200, min(1000, POINTS // max(1, len(played))))
    try:
        runs = [RunFolder(folder, points) for folder in played]
        evaluations = [EvaluationFolder(folder) for folder in evaluated]
        both: list[RunFolder | EvaluationFolder] = [*runs, *evaluations]
        names = [one.name for one in both]
        for one in both:
            if names.count(one.name) > 1:
                one.name = str(one.path)
        path = write(runs, args.out or args.runs[0] / REPORT_FILE, evaluations)
    except ValueError as error:
        print(f"nemo-magic report: {error}", file=sys.stderr)
        return 1
    rows = sum(one.rows for one in runs)
    told = [f"{rows:,} rows of figures of {len(runs)} run(s)"] if runs else []
    if evaluations:
        told.append(f"{sum(len(one.figures) for one in evaluations)} figures of {len(evaluations)} evaluation(s)")
    print(f"{path}: {', '.join(told)}, {path.stat().st_size / 1e6:.1f} MB")
    return 0
