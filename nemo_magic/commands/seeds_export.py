"""``nemo-magic seeds-export FILE …``: seeds as red-teaming tools read them. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_magic.data.catalogue import BENCHMARKS
from nemo_magic.data.errors import DataError
from nemo_magic.data.tables import DropReport
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.load_examples import load_benchmark
from nemo_magic.evaluation.seed_formats import FORMATS, representable
from nemo_magic.fsync_io import replace_durably
from nemo_magic.game.episode import Label


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, what they are, and the format to write."""
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="seeds: a text and a label a row")
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help="who is to read them")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="where to write them")
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        default="seeds",
        choices=sorted(BENCHMARKS),
        help="what the files are copies of, as eval.tasks.<name>.benchmark has it (seeds)",
    )
    parser.add_argument(
        "--label",
        metavar="harmful|benign|all",
        default="harmful",
        choices=[*map(str, Label), "all"],
        help="which of them (harmful: what is worth attacking)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the seeds of the files in the tool's format.

    Raises:
        DataError: nothing is left to write, or a file cannot be read or written.
    """
    report, seeds = DropReport(), list[Example]()
    for path in args.files:
        loaded = load_benchmark(args.benchmark, path, "seeds-export")
        print(f"{path}: {loaded}")
        selected = [example for example in loaded.examples if args.label == "all" or example.label == args.label]
        report.read += len(loaded.examples)
        report.drop(f"not {args.label}", len(loaded.examples) - len(selected))
        seeds += selected
    text = FORMATS[args.format](representable(seeds, report, args.format), args.out.stem)
    try:
        replace_durably(args.out, text)
    except OSError as error:
        raise DataError(f"seeds-export: --out={args.out} cannot be written: {error}") from error
    print(f"{args.out}: {report}")
    return 0
