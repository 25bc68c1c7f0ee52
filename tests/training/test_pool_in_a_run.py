"""The pool in the loop: past selves are met and measured, a resumed run meets whom the unbroken one met."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.config import ConfigError, compose
from tests.training.program import Game, checkpoint_sums, counters, played, run

# Six phases of one round: D A D A D A.
POOL = ["game.schedule.freq=1", "game.val_check_interval=6", "game.pool.draw=uniform", "game.pool.opponents=3"]


def state(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"checkpoints/step_{step:06d}/state.json").read_text())
    return found


@pytest.fixture(scope="module")
def pool(game: Game) -> Path:
    """Played through with a pool of three, two data-parallel ranks."""
    run(*game.quick("pool", *POOL))
    return game.folder("pool")


@pytest.mark.process
def test_a_learner_meets_past_selves_and_each_is_measured(pool: Path) -> None:
    rows = {row["step"]: row for row in played(pool)}
    met = {
        step: {key.removeprefix("train_rollouts/asr_vs_") for key in row if "asr_vs_" in key}
        for step, row in rows.items()
    }
    for step in range(1, 7):
        role = "attacker" if rows[step]["phase"] == "defender" else "defender"
        slots = state(pool, step - 1)["pool"]["slots"]
        members = [member["name"] for member in state(pool, step - 1)["pool"]["members"][role]]
        assert len(slots) == 3
        assert met[step] <= set(slots) <= set(members)
    # In a defender phase every group has its own attacker, in an attacker phase a step has one defender.
    assert set(state(pool, 4)["pool"]["slots"]) == {"start", "phase-01", "phase-03"}
    assert len(met[5]) > 1
    assert [len(met[step]) for step in (2, 4, 6)] == [1, 1, 1]


@pytest.mark.process
def test_until_there_is_somebody_to_draw_a_pool_plays_the_paper_s_game(game: Game, pool: Path) -> None:
    run(*game.quick("pool_latest", *POOL[:2]))
    latest, drawn = played(game.folder("pool_latest")), [without_opponents(row) for row in played(pool)]
    assert drawn[:2] == latest[:2]
    assert drawn[5] != latest[5]


def without_opponents(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "asr_vs_" not in key}


@pytest.mark.process
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_resumed_run_meets_whom_the_unbroken_one_met(game: Game, pool: Path, step: int) -> None:
    folder = game.folder(f"pool_resumed_{step}")
    shutil.copytree(pool, folder, symlinks=True)
    for path in (folder / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    run(*game.quick(folder.name, *POOL))
    assert played(folder) == played(pool)
    assert checkpoint_sums(folder, 6) == checkpoint_sums(pool, 6)
    assert counters(folder, 6) == counters(pool, 6)
    assert state(folder, 6)["pool"] == state(pool, 6)["pool"]


@pytest.mark.process
def test_results_are_counted_for_the_next_draw(pool: Path) -> None:
    members = {m["name"]: m for m in state(pool, 5)["pool"]["members"]["attacker"]}
    met = {key: value for key, value in played(pool)[5].items() if "asr_vs_" in key}
    assert met
    for key, asr in met.items():
        one = members[key.removeprefix("train_rollouts/asr_vs_")]
        assert one["games"] > 0
        assert 0 <= one["wins"] <= one["games"]
        assert (one["wins"] == 0) == (asr == 0) or one["games"] > 8  # counted on, from the phase before


@pytest.mark.process
def test_a_pool_is_played_at_other_layouts_and_over_several_turns(game: Game, pool: Path) -> None:
    run(*game.quick("pool_tp2", *POOL, "model.tensor_model_parallel_size=2"))
    for step in (0, 1):
        assert figures(game.folder("pool_tp2"), step) == pytest.approx(figures(pool, step), abs=1e-9)
    turns = ["game.max_turns=2", "game.max_steps=5", "trainer.devices=1", "game.pool.draw=pfsp"]
    run(*game.quick("pool_turns", *POOL, *turns))
    # An attacker that goes on attacking is there for the whole step.
    for row in played(game.folder("pool_turns"))[1:]:
        assert len([key for key in row if "asr_vs_" in key]) == 1
        assert 1 < row["train_rollouts/turns"] <= 2


def figures(folder: Path, step: int) -> dict[str, float]:
    row = next(row for row in played(folder) if row["step"] == step)
    return {k: v for k, v in row.items() if k.startswith(("train_rollouts/", "val_rollouts/"))}


@pytest.mark.process
def test_over_the_disk_budget_selves_are_let_go_and_no_checkpoint_misses_one(game: Game, pool: Path) -> None:
    folder = game.folder("pool_small")
    size = state(pool, 0)["pool"]["members"]["attacker"][0]["size"]
    on_disk = sum(path.stat().st_size for path in (pool / "snapshots/attacker/start").rglob("*"))
    assert size == pytest.approx(on_disk, rel=0.02)
    words = [
        *POOL, "game.max_steps=8", f"game.pool.max_disk_gib={5.5 * size / 2**30}", "trainer.devices=1",
        "exp_manager.checkpoint_callback_params.keep_last=1",
    ]  # fmt: skip
    run(*game.quick("pool_small", *words))
    (last,) = (folder / "checkpoints").glob("step_*")
    kept = json.loads((last / "state.json").read_text())["snapshots"]
    assert sum(map(len, kept.values())) == 5
    for role, newest in (("attacker", "phase-07"), ("defender", "phase-06")):
        assert kept[role][0] == "start"
        assert kept[role][-1] == newest
        assert set(kept[role]) <= {path.name for path in (folder / "snapshots" / role).iterdir()}
    gone = {"phase-00", "phase-01", "phase-02", "phase-03"} - {p.name for p in folder.glob("snapshots/*/*")}
    assert gone
    said = run(*game.quick("pool_tiny", *POOL, "game.pool.max_disk_gib=1e-6"), status=1).stderr
    assert "game.pool.max_disk_gib=1e-06 holds less than the first and the newest snapshot of every role" in said


@pytest.mark.process
def test_weights_in_host_memory_are_the_weights_on_disk(game: Game, pool: Path) -> None:
    run(*game.quick("pool_from_disk", *POOL, "game.pool.max_host_gib=0"))
    assert played(game.folder("pool_from_disk")) == played(pool)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["game.schedule.train_roles=[defender]"], "the attacker does not learn (game.schedule.train_roles="),
        (["ablation=self_play", "actors.attacker.restore_from_path=null"], "one model has no opponent of its own"),
        (
            [
                "actors.attacker.restore_from_path=null", "actors.attacker.remote.urls=[http://x/v1]",
                "actors.attacker.remote.model=m", "game.schedule.train_roles=[defender]",
            ],
            "the attacker does not learn (a server plays it)",
        ),
    ],
)  # fmt: skip
def test_a_pool_of_one_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose("magic_sandbox", ["game.pool.draw=uniform", *words])
    assert message in str(refused.value)


def test_the_plan_says_who_is_met() -> None:
    from nemo_magic.config import describe

    cfg = compose("magic_sandbox", ["game.pool.draw=mixture", "game.pool.opponents=4"])
    assert "against 4 of the opponent's selves a phase, 0.5 latest, 0.25 uniform, 0.25 pfsp" in describe(cfg)
    assert "against the opponent as it is" in describe(compose("magic_sandbox"))
