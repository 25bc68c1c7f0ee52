"""What fails on a cluster ends in a state that the run goes on from, and is named."""

from __future__ import annotations

import json
import signal

import pytest

from tests.slurm.playing import SMALL, Playground, rows

pytestmark = [pytest.mark.slurm, pytest.mark.process]


def test_a_hang_ends_with_the_culprit_and_its_node_and_a_judge_gone_for_good_with_a_checkpoint(
    playground: Playground,
) -> None:
    folder = playground.folder / "runs/hung"
    words = playground.game("hung", "exp_manager.hang_timeout=10", "judge.give_up_after=5")
    job = playground.submit("magic_8b.sh", *words, site=playground.sited("hasty", "MAX_FAILURES=0"))
    job.until((folder / "checkpoints/step_000001").exists)
    (_, stopped) = job.processes("train")
    job.signal("train", signal.SIGSTOP, rank=1)
    assert job.ended() == "FAILED"
    told, *rest = job.said().splitlines()[-2:]
    assert told.startswith(f"culprit: rank 1 on {stopped.node}: nothing was written in time; the process was stopped")
    assert "given up after 1 failures without a new checkpoint" in rest[0]
    assert not job.all_processes()

    # Submitted again, it goes on; now its judge dies and nobody starts it again.
    reached = max(rows(folder))
    job = playground.submit("magic_8b.sh", *words, site=playground.sited("stingy", "JUDGE_RESTARTS=0"))
    job.until_said("resumed from")
    job.signal("judge", signal.SIGKILL)
    job.until_said("is requeued")
    said = job.said()
    assert "the judge ended and has been started 1 times: the run saves and ends by itself" in said
    assert "no answer from http://127.0.0.1:" in said
    assert "the attempt ended with status 1;" in said
    last = next(line for line in said.splitlines() if line.startswith("the run ended by itself: "))
    assert "(judge.give_up_after=5); last: " in last
    assert "; saved after " in last
    saved = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))
    assert saved >= reached - 1
    assert job.ended() == "COMPLETED", job.said()
    assert f"resumed from runs/hung/checkpoints/step_{saved:06d}" in job.said()
    assert rows(folder) == list(range(9))


def test_when_a_node_dies_the_run_goes_on_on_those_that_are_left(playground: Playground) -> None:
    cluster, folder = playground.cluster, playground.folder / "runs/bereft"
    job = playground.submit("magic_70b.sh", *playground.game("bereft"))
    job.until((folder / "checkpoints/step_000001").exists)
    (judge,), (first, second) = job.processes("judge"), job.processes("train")
    assert len({judge.node, first.node, second.node}) == 3
    cluster.kill_node(second.node)
    try:
        job.until_said("resumed from")
        assert "DUE TO NODE FAILURE" in job.said()
        now = [process.node for process in [*job.processes("judge"), *job.processes("train")]]
        assert len(set(now)) == 3
        assert second.node not in now
        assert job.ended() == "COMPLETED", job.said()
    finally:
        cluster.start_node(second.node)
    assert rows(folder) == list(range(9))
    state = json.loads((folder / "checkpoints/step_000008/state.json").read_text())
    assert state["step"] == 8


def test_a_warm_up_that_is_warned_saves_is_requeued_and_goes_on(playground: Playground) -> None:
    short = ["trainer.devices=1", "sft.max_steps=150", "sft.batch_size=16", *SMALL]
    job, folder = playground.submit("sft.sh", "-cn", "sft_sandbox_attacker", "name=warned", *short), "runs/warned"
    job.until(lambda: 1 in rows(playground.folder / folder))
    playground.cluster.run("scancel", "--signal=USR1", "--batch", job.number)
    job.until_said("is requeued and goes on")
    job.until_said("resumed from")
    assert job.ended() == "COMPLETED", job.said()
    assert rows(playground.folder / folder) == list(range(1, 151))
    assert (playground.folder / folder / "weights/metadata.json").is_file()
