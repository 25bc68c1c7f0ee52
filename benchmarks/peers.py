"""A step of one policy of ours beside a step of TRL's GRPOTrainer: same weights, prompts, rows and lengths.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0            # the CPU build: --index-url https://download.pytorch.org/whl/cpu
    .venv-peers/bin/pip install -r requirements/peers.txt
    python benchmarks/peers.py FOLDER [--python .venv-peers/bin/python] [--rows 32] [--group 4] [--prompt 64]
                               [--length 64] [--micro 8] [--steps 3] [--cpu-time] [--out FILE]

FOLDER is a Hugging Face folder, e.g. the one of ``make english`` (runs/english/smollm2). A step: sample ``--rows``
responses of exactly ``--length`` tokens to prompts of ``--prompt``, ``--group`` to each, reward them (a made-up
number), and learn from them in one update of micro batches. No KL term on either side, fp32, one thread. The sides are
processes of their own. TRL does all its steps after ours have done half of theirs, and before the other half. The first
step of each counts for nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from figures import report, settle, table
from sides import Side, spread


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default=".venv-peers/bin/python", help="of the environment that has TRL")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps that count, of each side")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: for a machine that is not quiet")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.rows % args.group or args.rows % args.micro:
        parser.error("--rows has to be divisible by --group and by --micro")
    if not Path(args.python).exists():
        parser.error(f"--python {args.python}: no such interpreter; the words at the top of this file make one")
    settle()
    options = {key: getattr(args, key) for key in ("rows", "group", "prompt", "length", "micro")}
    options["steps"] = args.steps + 1
    half = args.steps // 2
    with Side("ours", args.folder, options) as side:
        ours = [side.ask("step", rows=args.rows, group=args.group) for _ in range(1 + half)][1:]
        with Side("trl", args.folder, options, args.python) as other:
            about = other.about
            theirs = other.ask("train")["result"][1:]
        ours += [side.ask("step", rows=args.rows, group=args.group) for _ in range(args.steps - half)]
    clock = "cpu_seconds" if args.cpu_time else "seconds"
    print_result(args, options, about, {"ours": ours, "TRL": theirs}, clock)


def print_result(
    args: argparse.Namespace, options: dict[str, int], about: dict[str, Any], steps: dict[str, list[Any]], clock: str
) -> None:
    """One table: seconds and memory of a step of each, and ours as a multiple of TRL's."""
    seconds = {name: spread([one[clock] for one in some]) for name, some in steps.items()}
    peaks = {name: max(one["peak_gib"] for one in some) for name, some in steps.items()}
    rows: list[list[object]] = [
        ["seconds, median", *(one["median"] for one in seconds.values())],
        ["seconds, least", *(one["min"] for one in seconds.values())],
        ["peak memory, GiB", *peaks.values()],
    ]
    for row in rows:
        row.append(float(row[1]) / float(row[2]))  # type: ignore[arg-type]
    text = table(["a step", *seconds, "ours / TRL"], rows)
    shape = ", ".join(f"{key} {value}" for key, value in options.items() if key != "steps")
    versions = f"trl {about['trl']}, transformers {about['transformers']}, torch {about['torch']} on its side"
    title = f"{args.folder.name}, {'CPU' if args.cpu_time else 'wall'} time, {args.steps} steps ({shape}); {versions}"
    report(title, [text], {"options": options, "peer": about, "measured": steps}, args.out)


if __name__ == "__main__":
    main()
