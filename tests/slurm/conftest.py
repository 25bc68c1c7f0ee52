from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.mini_slurm import MiniSlurm
from tests.slurm.playing import SMALL, Playground
from tests.training.program import run

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniSlurm]:
    """Four virtual nodes of a real Slurm."""
    with MiniSlurm(tmp_path_factory.mktemp("slurm"), nodes=4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def playground(cluster: MiniSlurm, tmp_path_factory: pytest.TempPathFactory) -> Playground:
    """A working directory with a small sandbox, where slurm/sft.sh has warmed up all who play: three jobs at once."""
    folder = tmp_path_factory.mktemp("playground")
    run("sandbox", "-cn", "magic_sandbox", f"sandbox.folder={folder / 'runs/sandbox'}", *SMALL)
    playground = Playground(cluster, folder)
    short = ["trainer.devices=1", "sft.max_steps=20", "sft.batch_size=64", *SMALL]
    names = [f"sft_sandbox_{who}" for who in ("attacker", "defender", "defender_cot")]
    jobs = [playground.submit("sft.sh", "-cn", name, *short) for name in names]
    for job, name in zip(jobs, names, strict=True):
        assert job.ended() == "COMPLETED", job.said()
        assert (folder / "runs" / name / "weights" / "metadata.json").is_file()
    return playground
