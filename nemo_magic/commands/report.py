"""``nemo-magic report FOLDER …``: runs and evaluations as one page. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nemo_magic.report.evaluation_folder import EvaluationFolder, is_evaluation
from nemo_magic.report.page import write
from nemo_magic.report.records import REPORT_FILE
from nemo_magic.report.run_folder import RunFolder

POINTS = 3000
"""Points of a curve, all runs of a page together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders, and where to write the page."""
    parser.add_argument("runs", metavar="FOLDER", type=Path, nargs="+", help="a run's or an evaluation's")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"where to write it ({REPORT_FILE} in the first run's folder)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page; exit status 1 for a run whose files cannot be read.

    Raises:
        FileNotFoundError: a folder holds neither a run nor an evaluation.
    """
    evaluation_paths = [folder for folder in args.runs if is_evaluation(folder)]
    run_paths = [folder for folder in args.runs if folder not in evaluation_paths]
    points = max(200, min(1000, POINTS // max(1, len(run_paths))))
    try:
        runs = [RunFolder(folder, points) for folder in run_paths]
        evaluations = [EvaluationFolder(folder) for folder in evaluation_paths]
        folders: list[RunFolder | EvaluationFolder] = [*runs, *evaluations]
        names = [folder.name for folder in folders]
        for folder in folders:
            if names.count(folder.name) > 1:
                folder.name = str(folder.path)
        page = write(runs, args.out or args.runs[0] / REPORT_FILE, evaluations)
    except ValueError as error:
        print(f"nemo-magic report: {error}", file=sys.stderr)
        return 1
    contents = [f"{sum(run.rows for run in runs):,} rows of figures of {len(runs)} run(s)"] if runs else []
    if evaluations:
        contents.append(f"{sum(len(one.figures) for one in evaluations)} figures of {len(evaluations)} evaluation(s)")
    print(f"{page}: {', '.join(contents)}, {page.stat().st_size / 1e6:.1f} MB")
    return 0
