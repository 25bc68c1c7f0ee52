"""slurm/evaluate.sh in a real Slurm: the judge on a node of its own, as in training."""

from __future__ import annotations

import pytest

from nemo_magic.evaluation.results import MARKDOWN_FILE
from tests.slurm.playing import SMALL, Job, Playground, Process

pytestmark = [pytest.mark.slurm, pytest.mark.process]


def evaluating(job: Job) -> list[Process]:
    """Not the task that composes the configuration before."""
    return [process for process in job.processes("evaluate") if "--dry-run" not in process.command]


def test_an_evaluation_has_judge_nodes_and_leaves_its_results_in_its_folder(playground: Playground) -> None:
    weights = [f"actors.{who}.restore_from_path=runs/sft_sandbox_{who}/weights" for who in ("attacker", "defender")]
    few = ["eval.tasks.test.limit=8", "eval.tasks.validation.limit=8"]
    job = playground.submit("evaluate.sh", "-cn", "eval_sandbox", *SMALL, "trainer.devices=1", *weights, *few)
    job.until(lambda: job.processes("judge") and evaluating(job))
    (judge,), (rank,) = job.processes("judge"), evaluating(job)
    assert judge.node != rank.node
    assert job.ended() == "COMPLETED", job.said()
    folder = playground.folder / "runs/eval_sandbox"
    assert (folder / "config.yaml").is_file()
    assert "refus" in (folder / MARKDOWN_FILE).read_text()
