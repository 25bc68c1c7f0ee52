"""The experiment in the sandbox: ``python benchmarks/experiments.py [--arms ARM …] [--seeds 1 2 3] [key=value …]``.

Every arm (``arms.py``) is played with several seeds from the same warm-ups, which ``make experiments`` sees to. Then
come leagues of those that have one, and one yardstick for all last defenders (``ablations.py``). What was played or
measured is not played or measured again: kill it at any time.

Numbers go to ``docs/experiments/results.json``, and from there into pages and pictures of docs/; ``--pages`` only makes
these anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import arms
import figures
from arms import ARMS, EVERY, FULL, POOLS, Run

from nemo_magic.fsync_io import write_durably
from nemo_magic.report.game_picture import phase_spans
from nemo_magic.report.records import LEAGUE_FILE, METRICS_FILE, STRATEGIES_FILE, StepRecord, read_records

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "experiments" / "results.json"
CURVES = ("asr", "useful")


def main(words: Sequence[str]) -> None:
    """Play what is missing, measure, and write numbers, tables and pictures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=list(EVERY), metavar="ARM", help=" ".join(EVERY)
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of each arm's own")
    parser.add_argument("--into", type=Path, default=Path("runs/experiments"), help="where the runs are put")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where the numbers are put (docs/experiments/results.json)"
    )
    parser.add_argument("--pages", action="store_true", help="play nothing, write pages and pictures from the numbers")
    parser.add_argument("--objective", action="store_true", help="one game with each option of docs/objective.md alone")
    parser.add_argument("--steps", type=int, default=30, help="with --objective: steps of each game, an even number")
    args, overrides = parser.parse_known_args(words)
    figures.settle()
    if args.objective:
        from objective import table

        print(table(args.into, overrides, args.steps))
        return
    if not args.pages:
        if FULL not in args.arms:
            parser.error(
                f"--arms {' '.join(args.arms)}: {FULL} is missing, whose attackers all others are measured with"
            )
        planned = plan(args.arms, args.seeds, args.into)
        play_all(planned, overrides)
        results = measure(planned, overrides)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_durably(args.out, as_json(results))
    from experiment_pages import yardstick

    results = json.loads(args.out.read_text(encoding="utf-8"))
    if args.out == RESULTS:
        write_pages(results)
    print(yardstick(results))


def write_pages(results: Mapping[str, Any]) -> None:
    """The tables and pictures of docs/, from the numbers."""
    import experiment_pages
    import experiment_pictures

    for page in sorted({where for where, _ in experiment_pages.TABLES.values()}):
        path = DOCS / page
        path.write_text(experiment_pages.fill_tables(page, path.read_text(encoding="utf-8"), results), encoding="utf-8")
    experiment_pictures.draw(results, DOCS / "experiments")


def plan(names: Sequence[str], seeds: Sequence[int] | None, into: Path) -> list[Run]:
    """All arms at a seed before the next seed: what there is when somebody runs out of time can be compared."""
    pairs = [(seed, arm) for arm in names for seed in seeds or EVERY[arm].seeds]
    return [Run(arm, seed, into) for seed, arm in sorted(pairs, key=lambda pair: pair[0])]


def play_all(runs: Sequence[Run], overrides: Sequence[str]) -> None:
    """All games of ``runs``, and all leagues."""
    for number, run in enumerate(runs, start=1):
        say(f"game {number} of {len(runs)}: {run.name}")
        arms.play(run, overrides)
    leagues = [run for run in runs if EVERY[run.arm].league]
    for number, run in enumerate(leagues, start=1):
        others = [one for one in runs if one.seed == run.seed and one != run and {one.arm, run.arm} <= set(POOLS)]
        say(f"league {number} of {len(leagues)}: {run.name}")
        arms.league(run, others)


def measure(runs: Sequence[Run], overrides: Sequence[str]) -> dict[str, Any]:
    """Everything that pages and pictures show, as JSON holds it."""
    from ablations import yardstick

    say("the yardstick")
    full = [run.folder for run in runs if run.arm == FULL]
    figures_of = yardstick([run.folder for run in runs], full, overrides)
    return {
        "machine": figures.machine(),
        "full_games": [folder.name for folder in full],
        "start_up_cpu": arms.start_up(runs[0].into, overrides),
        "before": figures_of.before,
        "runs": {run.name: _row(run) | {"yardstick": figures_of.after[run.name]} for run in runs},
    }


def as_json(results: Mapping[str, Any]) -> str:
    """``results`` as JSON, a run a line."""
    runs = ",\n".join(f"  {json.dumps(name)}: {json.dumps(run)}" for name, run in results["runs"].items())
    head = json.dumps({key: value for key, value in results.items() if key != "runs"}, indent=1)
    return f'{head[:-2]},\n "runs": {{\n{runs}\n }}\n}}\n'


def _row(run: Run) -> dict[str, Any]:
    """A run's figures, from its own files."""
    records = read_records(run.folder / METRICS_FILE)
    row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "curves": _curves(records), "seconds": _seconds(records)}
    row["attacker_phases"] = [
        [round(first) + 1, round(last)] for first, last, learner in phase_spans(records) if learner == "attacker"
    ]
    sweep = json.loads((run.folder / STRATEGIES_FILE).read_text())
    row["strategies"] = {name: round(asr, 4) for name, asr in sweep["end"]["asr"].items() if asr > 0}
    cost = run.folder / arms.COST_FILE
    row["cost"] = json.loads(cost.read_text()) if cost.exists() else None
    row["league"] = _league(run.folder / LEAGUE_FILE) if EVERY[run.arm].league else None
    return row


def _curves(records: Sequence[StepRecord]) -> dict[str, list[Any]]:
    """Figures of the games that were trained on, step by step; null where a step had none of a kind."""
    trained = [record for record in records if record.learner is not None]
    curves: dict[str, list[Any]] = {"step": [record.step for record in trained]}
    for name in CURVES:
        values = [record.metrics.get(f"train_rollouts/{name}") for record in trained]
        curves[name] = [None if value is None or value != value else round(value, 3) for value in values]
    return curves


def _seconds(records: Sequence[StepRecord]) -> dict[str, float]:
    """Seconds of a step by who learns: mean over the steps of a phase, median over phases, so that one in which the
    machine was busy counts little. Phases before there is anybody to draw but the latest are not counted."""
    phases: dict[str, dict[int, list[float]]] = {}
    for record in records:
        if record.learner is not None and record.phase_index >= 4:
            phases.setdefault(record.learner, {}).setdefault(record.phase_index, []).append(
                record.metrics["timers/step"]
            )
    return {role: median(map(fmean, steps.values())) for role, steps in phases.items()}


def _league(path: Path) -> dict[str, Any]:
    league = json.loads(path.read_text())
    asr = league["asr"]
    return {
        "attackers": league["attackers"],
        "defenders": league["defenders"],
        "games": [each["harmful"] for each in league["games"].values()],
        "asr": [[round(cell, 4) for cell in row] for row in asr["matrix"]],
        "worst": asr["last_defender"]["worst"],
        "exploitability": asr["last_defender"]["exploitability"],
        "payoff_exploitability": league["payoff"]["last_defender"]["exploitability"],
        "value": asr["value"]["value"],
        "forgotten": len(league["forgotten"]),
    }


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
