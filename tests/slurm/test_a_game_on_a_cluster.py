"""slurm/magic_70b.sh as it is, in a real Slurm: the judge on a node of its own, two ranks on each of two others."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.playing import ROOT, SMALL, Job, Playground, Process, rows
from tests.training.program import checkpoint_sums, counters, played

pytestmark = [pytest.mark.slurm, pytest.mark.process]
TWO_BY_TWO = ["trainer.devices=2"]


@dataclass(frozen=True)
class Seen:
    """A job that has ended, and what ran for it while it trained."""

    job: Job
    folder: Path
    judges: list[Process]
    ranks: list[Process]
    everything: list[Process]


@pytest.fixture(scope="module")
def unbroken(playground: Playground) -> Seen:
    """Submitted with plain sbatch, and left alone."""
    words = [str(ROOT / "slurm/magic_70b.sh"), *playground.game("unbroken", *TWO_BY_TWO)]
    ones = [":", "--nodes=1", "--ntasks-per-node=1"]
    said = playground.shell("sbatch", "--nodes=2", "--ntasks-per-node=2", *ones, *words)
    job, folder = playground.job(said.split()[-1]), playground.folder / "runs/unbroken"
    job.until(lambda: 1 in rows(folder))
    seen = Seen(job, folder, job.processes("judge"), job.processes("train"), job.all_processes())
    assert job.ended() == "COMPLETED", job.said()
    return seen


@pytest.fixture(scope="module")
def broken(playground: Playground) -> Seen:
    """Requeued by hand, then out of time, then robbed of its judge."""
    cluster, folder = playground.cluster, playground.folder / "runs/broken"
    job = playground.submit("magic_70b.sh", *playground.game("broken", *TWO_BY_TWO))
    job.until(lambda: 1 in rows(folder))
    cluster.run("scontrol", "requeue", job.number)

    job.until_said("resumed from")
    # Until the judge answers no step ends: Slurm looks at time limits twice a minute only.
    job.signal("judge", signal.SIGSTOP)
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=2")
    job.until_said("asked to end")
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=20")
    job.signal("judge", signal.SIGCONT)

    job.until_said("resumed from", times=2)
    seen = Seen(job, folder, job.processes("judge"), job.processes("train"), job.all_processes())
    job.signal("judge", signal.SIGKILL)
    assert job.ended() == "COMPLETED", job.said()
    return seen


def test_the_judge_has_a_node_of_its_own_and_two_ranks_train_on_each_of_two_others(unbroken: Seen) -> None:
    (judge,) = unbroken.judges
    nodes = [rank.node for rank in unbroken.ranks]
    assert len(set(nodes)) == 2
    assert nodes == [nodes[0]] * 2 + [nodes[2]] * 2
    assert judge.node not in nodes
    assert all("judge.launch=false" in rank.command for rank in unbroken.ranks)
    assert rows(unbroken.folder) == list(range(9))


@pytest.mark.parametrize("run", ["unbroken", "broken"])
def test_the_token_is_in_no_command_line_and_in_no_file(run: str, request: pytest.FixtureRequest) -> None:
    seen: Seen = request.getfixturevalue(run)
    token = seen.judges[0].environ["NEMO_MAGIC_JUDGE_TOKEN"]
    assert len(token) == 64
    assert {rank.environ["NEMO_MAGIC_JUDGE_TOKEN"] for rank in seen.ranks} == {token}
    assert len(seen.everything) > len(seen.judges + seen.ranks)
    assert not [process.command for process in seen.everything if token in " ".join(process.command)]
    texts = [path for path in seen.folder.rglob("*") if path.suffix in (".log", ".yaml", ".json", ".jsonl")]
    assert len(texts) > 5
    assert not [path for path in [*texts, seen.job.log] if token in path.read_text(errors="replace")]


def test_requeued_out_of_time_and_robbed_of_its_judge_it_equals_the_unbroken_run(unbroken: Seen, broken: Seen) -> None:
    said, number = broken.job.said(), broken.job.number
    assert sorted(path.name for path in (broken.folder / "logs").iterdir()) == [f"{number}.{n}" for n in range(3)]
    assert said.count(f"JOB {number} ON ") == 2  # both times that Slurm ended an attempt
    assert said.count("asked to end: the ranks save") == said.count(f"saved: job {number} is requeued") == 1
    assert said.count("the judge ended: it is started again (1 of 3)") == 1
    assert rows(broken.folder) == list(range(9))
    assert played(broken.folder) == played(unbroken.folder)
    assert checkpoint_sums(broken.folder, 8) == checkpoint_sums(unbroken.folder, 8)
    assert counters(broken.folder, 8) == counters(unbroken.folder, 8)


def test_two_adapters_on_one_base_play_on_one_node_by_the_70b_configuration_made_small(
    playground: Playground,
) -> None:
    warm = "runs/sft_sandbox_attacker/weights"
    words = [
        "-cn", "magic_70b_lora", "model=tiny", "cluster=cpu", "data=sandbox", "judge=rules", "game=robust", *SMALL,
        "sandbox.folder=runs/sandbox", "model.tokenizer={library: huggingface, type: runs/sandbox/tokenizer}",
        "model.optim.name=cpu_fused_adam", "generation.engine=native", "generation.batch_size=512",
        "model.tensor_model_parallel_size=2", "model.encoder_seq_length=48", "model.micro_batch_size=16",
        "actors.attacker.length_params={max_length: 20, max_prompt_length: 28}",
        "actors.defender.length_params={max_length: 8, max_prompt_length: 40}",
        f"actors.attacker.restore_from_path={warm}", f"actors.defender.restore_from_path={warm}",
        "game.batch_size=8", "game.max_steps=4", "game.schedule.freq=2", "game.early_stop.at_step=null",
        "game.num_val_samples=8", "game.val_check_interval=4", "game.crossplay.enabled=false",
    ]  # fmt: skip
    ones = [":", "--nodes=1", "--ntasks-per-node=1"]
    script = str(ROOT / "slurm/magic_70b.sh")
    said = playground.shell("sbatch", "--nodes=1", "--ntasks-per-node=2", *ones, script, *words)
    job, folder = playground.job(said.split()[-1]), playground.folder / "runs/magic_70b_lora"
    job.until(lambda: 1 in rows(folder))
    (judge,), ranks = job.processes("judge"), job.processes("train")
    assert [rank.node for rank in ranks] == [ranks[0].node] * 2
    assert judge.node != ranks[0].node
    assert job.ended() == "COMPLETED", job.said()
    assert rows(folder) == list(range(5))
    (state,) = folder.glob("checkpoints/step_000004/state.json")
    cards = json.loads(state.read_text())["adapters"]
    assert {role: card["base"] for role, card in cards.items()} == dict.fromkeys(
        ("attacker", "defender"), str(playground.folder / warm)
    )
    weights = [path.stat().st_size for path in (playground.folder / warm).glob("*.distcp")]
    for snapshot in folder.glob("snapshots/*/*"):
        assert sum(path.stat().st_size for path in snapshot.glob("*.distcp")) < sum(weights)
