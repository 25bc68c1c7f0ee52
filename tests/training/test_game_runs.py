"""The whole program as a user runs it: warm-up, the game at several layouts, and a judge that dies in the middle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nemo_magic.report.records import read_records
from tests.actors.chat_endpoint import Body, Endpoint, says
from tests.training.program import MINUTES, Game, played, run, start, start_judge, steps, wait_for

pytestmark = pytest.mark.process


def figures(folder: Path, step: int) -> dict[str, float]:
    """What was sampled and judged in a step; nothing that depends on speed."""
    record = next(r for r in read_records(folder / "metrics.jsonl") if r.step == step)
    return {k: v for k, v in record.metrics.items() if k.startswith(("train_rollouts/", "val_rollouts/"))}


def test_warm_up_learns(home: Path) -> None:
    for role in ("attacker", "defender"):
        losses = [r.metrics["train_optim/loss"] for r in read_records(home / role / "metrics.jsonl")]
        assert len(losses) == 40
        assert losses[-1] < losses[0] / 2


def test_warmed_up_weights_are_never_written_over(home: Path) -> None:
    described = (home / "attacker" / "config.yaml").read_text()
    words = ["sft", "-cn", "sft_sandbox_attacker", f"exp_manager.explicit_log_dir={home / 'attacker'}"]
    done = run(*words, f"sandbox.folder={home / 'sandbox'}", "trainer.devices=1", status=2)
    assert f"{home / 'attacker'} already holds the results of a warm-up (weights)" in done.stderr
    assert (home / "attacker" / "config.yaml").read_text() == described  # four layers, and not the preset's three


def test_phases_are_exactly_as_long_as_the_schedule_says(unbroken: Path) -> None:
    records = read_records(unbroken / "metrics.jsonl")
    assert [r.step for r in records] == list(range(7))
    assert [r.learner for r in records] == [None, *["defender"] * 2, *["attacker"] * 2, *["defender"] * 2]
    assert [r.phase_index for r in records[1:]] == [0, 0, 1, 1, 2, 2]


def test_every_step_is_judged_and_measured(unbroken: Path) -> None:
    for record in read_records(unbroken / "metrics.jsonl")[1:]:
        assert record.metrics["train_rollouts/unknown_share"] == 0
        for name in ("asr", "over_refusal", "useful", "intent_preserved", "format_ok", "reward_harm_defender"):
            assert f"train_rollouts/{name}" in record.metrics
        assert record.metrics["throughput/tokens_per_second"] > 0
        assert record.metrics["train_optim/live_rows"] > 0
        assert record.metrics["train_optim/ratio"] == pytest.approx(1.0)  # a single minibatch is on-policy
    validated = [r.step for r in read_records(unbroken / "metrics.jsonl") if "val_rollouts/asr" in r.metrics]
    assert validated == [0, 2, 4, 6]


def test_a_run_leaves_its_picture_its_matrix_and_what_it_was(unbroken: Path) -> None:
    assert (unbroken / "game.png").read_bytes().startswith(b"\x89PNG")
    matrix = json.loads((unbroken / "crossplay.json").read_text())
    assert matrix["attackers"] == ["no rewrite", "start", "phase-01"]
    assert matrix["defenders"] == ["start", "phase-00", "phase-02"]
    probe = json.loads((unbroken / "strategies.json").read_text())
    assert len(probe["end"]["asr"]) == 37
    assert probe["end"]["worst"] == max(probe["end"]["asr"].values())
    attacks = json.loads((unbroken / "attacks" / "attacks.json").read_text())
    assert attacks["labels"] == "the sandbox, exactly"
    assert [phase["learner"] for phase in attacks["phases"]] == ["defender", "attacker", "defender"]
    assert list(unbroken.glob("snapshots/*/*/metadata.json"))
    saved = {p.name for p in unbroken.iterdir()}
    assert {"config.yaml", "versions.json"} <= saved, saved
    sample = json.loads(next((unbroken / "samples").iterdir()).read_text().splitlines()[0])
    assert sample["seed"]


def test_the_same_game_is_played_at_another_layout(unbroken: Path, unbroken_tp2: Path) -> None:
    # Samples depend on the weights and on who they are, not on how many ranks share them.
    for step in (0, 1):
        assert figures(unbroken_tp2, step) == pytest.approx(figures(unbroken, step), abs=1e-9)


def test_training_waits_for_a_judge_that_dies_and_goes_on_when_it_returns(
    game: Game, unbroken: Path, tmp_path: Path
) -> None:
    judge, port = start_judge(game.home, tmp_path, 0)
    folder, log = game.folder("outage"), tmp_path / "log"
    training = start(*game.quick("outage", "judge.launch=false", f'judge.urls=["http://127.0.0.1:{port}"]'), log=log)
    try:
        wait_for(lambda: steps(folder) >= 3, training, log)
        judge.kill()
        judge.wait()
        wait_for(lambda: "waiting for the judge" in log.read_text(), training, log)
        stalled = steps(folder)
        judge, _ = start_judge(game.home, tmp_path, port)
        assert training.wait(timeout=4 * MINUTES) == 0, log.read_text()[-5000:]
    finally:
        training.kill()
        judge.kill()
        judge.wait()
    assert stalled < 7
    assert played(folder) == played(unbroken)


def test_a_judge_that_was_never_there_ends_the_run_on_every_rank(game: Game) -> None:
    words = game.quick("gone", "judge.launch=false", 'judge.urls=["http://127.0.0.1:9"]', "judge.give_up_after=2")
    assert "JudgeUnavailable" in run(*words, status=1).stderr


def test_a_role_that_learns_nothing_may_be_played_by_a_server(game: Game) -> None:
    def leave_it_as_it_is(body: Body) -> tuple[int, Body]:
        _, request = body["messages"][-1]["content"].split(" : ", 1)
        return 200, says(f"<think> plain </think> <answer> {request} </answer>")

    server = Endpoint(leave_it_as_it_is)
    try:
        run(*game.words(
            "remote", "actors.attacker.restore_from_path=null", f"actors.attacker.remote.urls=[{server.url}]",
            "actors.attacker.remote.model=tiny", "game.schedule.train_roles=[defender]", "game.max_steps=2",
        ))  # fmt: skip
    finally:
        server.close()
    folder = game.folder("remote")
    rows = [row for row in played(folder) if row["step"] > 0]
    assert [row["phase"] for row in rows] == ["defender", "defender"]
    for row in rows:
        assert row["train_rollouts/format_ok"] == 1
        assert row["train_rollouts/intent_preserved"] == 1
        assert row["train_rollouts/unplayed_share"] == row["train_rollouts/unanswered"] == 0
    matrix = json.loads((folder / "crossplay.json").read_text())
    assert matrix["attackers"] == ["no rewrite", "remote"]
    assert matrix["defenders"] == ["start", "phase-00"]
    assert {body["model"] for body in server.bodies} == {"tiny"}


def test_a_role_whose_server_says_nothing_is_no_empty_message(game: Game) -> None:
    """Neither in a validation, which has no figures then, nor in a step, which ends the run by name."""
    server = Endpoint(lambda _: (200, says(None, "tool_calls")))
    try:
        said = run(*game.quick(
            "silent", "actors.attacker.restore_from_path=null", f"actors.attacker.remote.urls=[{server.url}]",
            "actors.attacker.remote.model=tiny", "game.schedule.train_roles=[defender]", "game.max_steps=2",
        ), status=1)  # fmt: skip
    finally:
        server.close()
    words = (
        r"\d+% of the games could not be played \(game\.max_unplayed_share=0\.1\): a role's server gave no answer "
        r"to \d+ messages \(content is null, finish_reason='tool_calls'\); saved after 0"
    )
    assert re.search(words, said.stderr), said.stderr
    [row] = played(game.folder("silent"))
    assert row["val_rollouts/unanswered"] > 0
    assert not any(name.startswith("val_rollouts/asr") for name in row)


def test_one_model_may_play_both_roles_and_goes_on_as_one(game: Game) -> None:
    words = game.words(
        "self", "ablation=self_play", "actors.attacker.restore_from_path=null", "game.schedule.freq=1",
        "game.strategy_sweep=null", "trainer.devices=1",
    )  # fmt: skip
    run(*words, "game.max_steps=2")
    assert "2 of 3 steps are done" in run(*words, "game.max_steps=3").stdout
    folder = game.folder("self")
    assert [row["phase"] for row in played(folder)[1:]] == ["defender", "attacker", "defender"]
    # Phases of one round: a self is kept where a phase ends with a validation, and at the end.
    selves = ["start", "phase-01", "phase-02"]
    assert {path.name for path in (folder / "snapshots" / "shared").iterdir()} == set(selves)
    matrix = json.loads((folder / "crossplay.json").read_text())
    assert matrix["attackers"] == ["no rewrite", *selves]
    assert matrix["defenders"] == selves
