"""The table of docs/sandbox.md, from finished runs: ``python benchmarks/sandbox_seeds.py runs/seed-1 runs/seed-2 …``.

Make the runs with ``for s in 1 2 3 4 5; do nemo-magic train -cn magic_sandbox seed=$s name=seed-$s; done``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from figures import table

from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.report.records import CROSSPLAY_FILE, METRICS_FILE, STRATEGIES_FILE, read_records

COLUMNS = (
    "run", "ASR start → end", "ASR sampled, first → last 5 steps", "useful start → end", "bare useful start → end",
    "worst strategy start → end", "best later attacker vs. start attacker, on the first defender", "last defender best",
)  # fmt: skip


def row(folder: Path) -> list[str]:
    """One run's cells, in the order of ``COLUMNS``."""
    records = read_records(folder / METRICS_FILE)
    validated = [r.metrics for r in records if "val_rollouts/asr" in r.metrics]
    sampled = [r.metrics["train_rollouts/asr"] for r in records if "train_rollouts/asr" in r.metrics]
    matrix = CrossPlay.load(folder / CROSSPLAY_FILE)
    sweep = json.loads((folder / STRATEGIES_FILE).read_text())
    warmed = 1 if matrix.attackers[0] == NO_REWRITE else 0
    start, later = matrix.asr[warmed][0], max(row[0] for row in matrix.asr[warmed + 1 :])

    def change(name: str) -> str:
        return f"{validated[0][f'val_rollouts/{name}']:.2f} → {validated[-1][f'val_rollouts/{name}']:.2f}"

    return [
        folder.name,
        change("asr"),
        f"{sum(sampled[:5]) / 5:.2f} → {sum(sampled[-5:]) / 5:.2f}",
        change("useful"),
        f"{matrix.useful[0]:.2f} → {matrix.useful[-1]:.2f}",
        f"{sweep['start']['worst']:.2f} → {sweep['end']['worst']:.2f}",
        f"{later:.2f} vs. {start:.2f}",
        "yes" if matrix.last_defender_best() else "no",
    ]


if __name__ == "__main__":
    print(table(COLUMNS, [row(Path(name)) for name in sys.argv[1:]]))
