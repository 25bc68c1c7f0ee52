"""An alarm in a real run: what it leaves behind, that it can stop the run, and that this holds until it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.program import Game, played, run, steps

pytestmark = pytest.mark.process

# Roles that were warmed up for forty steps write rewrites that lose their seed's intent.
DRIFT = ["alarms.intent_drift.window=1", "alarms.intent_drift.floor=0.95"]


def without_alarms(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("alarms/")} for row in rows]


def test_a_run_that_an_alarm_stopped_has_saved_and_goes_on_only_when_it_is_told_to(game: Game, unbroken: Path) -> None:
    stopped = game.quick("alarmed", *DRIFT, "alarms.intent_drift.action=stop")
    folder = game.folder("alarmed")
    said = run(*stopped, status=1)
    assert "ALARM intent_drift after step 1: train_rollouts/intent_preserved" in said.stdout
    assert "alarms.intent_drift.action=stop: " in said.stderr
    assert "saved after 1" in said.stderr
    assert steps(folder) == 2
    # Whoever starts it again without a thought, as a cluster does, does not get past it.
    assert "saved after 1" in run(*stopped, status=1).stderr
    assert steps(folder) == 2
    run(*game.quick("alarmed", *DRIFT))
    assert without_alarms(played(folder)) == without_alarms(played(unbroken))
    events = [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]
    assert (events[0]["step"], events[0]["alarm"], events[0]["raised"]) == (1, "intent_drift", True)
    assert [event["raised"] for event in events] == [number % 2 == 0 for number in range(len(events))]
    report = (folder / "report.html").read_text()
    assert "the attacker no longer asks what its seeds ask" in report
