"""The experiment's numbers, as docs/experiments/results.json holds them: what tables and pictures read of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arms import FREQUENCY

Results = Mapping[str, Any]
"""The whole file."""
RunResult = Mapping[str, Any]
"""One entry of its ``runs``."""

YARDSTICK = {
    "asr_warmed_up": "ASR, warmed-up attacker",
    "asr_best": "ASR, best of the full games",
    "asr_worst_strategy": "ASR, worst strategy",
    "asr_mean_strategy": "ASR, mean strategy",
    "useful_attacked": "useful, warmed-up attacker",
    "useful_worst": "useful, worst attacker",
    "useful_bare": "useful, no attacker",
    "over_refusal_bare": "over-refusal, no attacker",
}
"""Figure of a last defender → its heading in a table."""


def runs_of(results: Results, arm: str) -> list[RunResult]:
    """The runs of an arm, by seed."""
    return sorted((run for run in results["runs"].values() if run["arm"] == arm), key=lambda run: run["seed"])


def step_of(snapshot: str) -> int:
    """The step at which a game with phases of ``FREQUENCY`` steps saved the snapshot of this name."""
    return 0 if snapshot == "start" else FREQUENCY * (1 + int(snapshot.removeprefix("phase-")))
