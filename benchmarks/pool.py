"""A pool against the latest opponent: ``python benchmarks/pool.py [--seeds 1 2 3 4 5] [--into runs] [key=value …]``.

For every seed the same game twice from the same warmed-up pair (``make train`` leaves it): against the latest opponent,
and against a pool of five places. Both with phases of 5 steps, so that there is somebody to draw. Then each run's
league, the attackers of the other run of the seed included, so that both last defenders meet the same attackers.

Printed is a row per run, and the pool's seconds per step over the other's. The two runs of a seed are played one after
the other: run it where nothing else runs. What was played is not played again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from nemo_magic.report.records import METRICS_FILE, PICTURE_FILE, STRATEGIES_FILE, read_records

GAME = ["game.max_steps=75", "game.schedule.freq=5", "game.val_check_interval=25", "game.crossplay.enabled=false"]
ARMS = {"latest": ["game.pool.draw=latest"], "pool": ["game.pool.draw=mixture", "game.pool.opponents=5"]}
COLUMNS = (
    "run",
    "ASR, worst attacker",
    "exploitability",
    "forgotten",
    "worst strategy",
    "useful, held out",
    "s/step, defender phases",
    "s/step, attacker phases",
)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--into", type=Path, default=Path("runs"), help="where the runs are put (runs)")
    parser.add_argument("--attack-seeds", type=int, default=64, help="games a cell (64)")
    args, overrides = parser.parse_known_args(words)
    folders = {(arm, seed): args.into / f"pool-{arm}-{seed}" for seed in args.seeds for arm in ARMS}
    for (arm, seed), folder in folders.items():
        if not (folder / PICTURE_FILE).exists():
            program("train", "-cn", "magic_sandbox", f"name={folder.name}", f"exp_manager.explicit_log_dir={folder}",
                    f"seed={seed}", *GAME, *ARMS[arm], *overrides)  # fmt: skip
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    print_row(*COLUMNS)
    print_row(*["---"] * len(COLUMNS))
    for (arm, seed), folder in folders.items():
        other = folders["pool" if arm == "latest" else "latest", seed]
        rows[arm].append(measured(folder, other, args.attack_seeds))
        print_row(f"{arm}, seed {seed}", *(f"{value:.2f}" for value in rows[arm][-1].values()))
    for arm, found in rows.items():
        print_row(f"{arm}, mean", *(f"{fmean(row[name] for row in found):.2f}" for name in found[0]))
    print()
    for name in COLUMNS[-2:]:
        ratios = [b[name] / a[name] for a, b in zip(rows["latest"], rows["pool"], strict=True)]
        print(f"{name}: pool / latest = {median(ratios):.2f} (median of {len(ratios)} seeds)")


def measured(folder: Path, other: Path, attack_seeds: int) -> dict[str, float]:
    """A run's row, in the order of COLUMNS."""
    theirs = sorted(path.parent for path in (other / "snapshots" / "attacker").glob("phase-*/metadata.json"))
    attackers = [word for path in theirs for word in ("--attacker", f"{other.name}/{path.name}={path}")]
    program("cross-play", str(folder), *attackers, f"game.crossplay.num_seeds={attack_seeds}")
    league: dict[str, Any] = json.loads((folder / "cross-play" / "league.json").read_text())
    last = league["asr"]["last_defender"]
    records = read_records(folder / METRICS_FILE)
    useful = [r.metrics["val_rollouts/useful"] for r in records if "val_rollouts/useful" in r.metrics][-1]
    strategies = json.loads((folder / STRATEGIES_FILE).read_text())
    # Until two phases of a role are over there is nobody to draw but the latest.
    late = [r for r in records if r.phase_index >= 4]
    seconds = {
        role: fmean(r.metrics["timers/step"] for r in late if r.learner == role) for role in ("defender", "attacker")
    }
    values = (
        last["worst"]["value"], last["exploitability"]["value"], float(len(league["forgotten"])),
        strategies["end"]["worst"], useful, seconds["defender"], seconds["attacker"],
    )  # fmt: skip
    return dict(zip(COLUMNS[1:], values, strict=True))


def program(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "nemo_magic.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nemo-magic {' '.join(words)}: status {done.returncode}\n{done.stderr[-3000:]}")


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
