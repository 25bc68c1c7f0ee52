"""Jobs as a user submits them to the virtual cluster, watched from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.mini_slurm import MiniSlurm
from tests.zygote import environment

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 60
SMALL = ["sandbox.attack_rows=200", "sandbox.defender_rows=200", "model.num_layers=2"]
SITE = """\
MPI=none
PYTHON={python}
TIME_LIMIT=20
SIGNAL_AHEAD=120
JUDGE_ARGS=(-cn magic_sandbox)
JUDGE_HOST=127.0.0.1
node_address() {{ echo 127.0.0.1; }} # all virtual nodes are this machine
"""


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    node: str
    command: list[str]
    environ: dict[str, str]

    def does(self, word: str) -> bool:
        """Whether this is ``nemo-magic <word>`` itself, and nobody who starts it."""
        return self.command[1:4] == ["-m", "nemo_magic.cli", word]


class Playground:
    """A folder that jobs are submitted from, with a site's file of its own."""

    def __init__(self, cluster: MiniSlurm, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.site = self.sited("site")

    def sited(self, name: str, *settings: str) -> Path:
        """A site's file with ``settings`` beside what this cluster needs."""
        path = self.folder / f"{name}.sh"
        path.write_text(SITE.format(python=sys.executable) + "\n".join(settings) + "\n")
        return path

    def game(self, name: str, *overrides: str) -> list[str]:
        """A game of eight rounds (D D A A D D A A) on two nodes that saves after every round."""
        return [
            "-cn", "magic_sandbox", f"name={name}", *SMALL, "trainer.num_nodes=2", "trainer.devices=1",
            "game.max_steps=8", "game.schedule.freq=2", "game.batch_size=8", "game.num_val_samples=8",
            "game.val_check_interval=4", "game.crossplay.enabled=false", "game.strategy_sweep=null",
            "exp_manager.create_tensorboard_logger=false",
            "exp_manager.checkpoint_callback_params.every_n_train_steps=1",
            "exp_manager.checkpoint_callback_params.keep_last=10", *overrides,
        ]  # fmt: skip

    def environ(self, site: Path | None = None) -> dict[str, str]:
        shell = self.cluster.environment | {"PYTHONPATH": environment()["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
        return shell | {"NEMO_MAGIC_SITE": str(site or self.site), "NEMO_MAGIC_HOME": str(ROOT)}

    def shell(self, *words: str, site: Path | None = None, status: int = 0, **environ: str) -> str:
        """What a command prints; it must end with ``status``."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environ(site) | environ,
            capture_output=True,
            text=True,
            timeout=10 * MINUTES,
        )
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, script: str, *words: str, site: Path | None = None, **environ: str) -> Job:
        """``bash slurm/SCRIPT --submit``."""
        said = self.shell("bash", str(ROOT / "slurm" / script), "--submit", *words, site=site, **environ)
        return self.job(said.split()[1])

    def job(self, number: str) -> Job:
        return Job(self, number)


@dataclass(frozen=True)
class Job:
    playground: Playground
    number: str

    @property
    def log(self) -> Path:
        (path,) = self.playground.folder.glob(f"*-{self.number}.log")
        return path

    def said(self) -> str:
        found = list(self.playground.folder.glob(f"*-{self.number}.log"))
        return found[0].read_text(errors="replace") if found else ""

    def field(self, name: str) -> str:
        return self.playground.cluster.field(self.number, name)

    def processes(self, word: str) -> list[Process]:
        """This job's ``nemo-magic <word>``, by rank; what they forked looks alike and is left out."""
        alike = {p.pid: p for p in self.all_processes() if p.does(word)}
        return sorted(
            (p for p in alike.values() if p.parent not in alike), key=lambda p: int(p.environ["SLURM_PROCID"])
        )

    def all_processes(self) -> list[Process]:
        """Everything that runs for this job."""
        found = []
        for pid in self.playground.cluster.processes():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
                entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
            except OSError:
                continue
            environ = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            if self.number in (environ.get("SLURM_JOB_ID"), environ.get("SLURM_HET_JOB_ID")):
                found.append(Process(pid, parent, environ.get("SLURMD_NODENAME", ""), command, environ))
        return found

    def until(self, what: Callable[[], object], minutes: float = 8) -> None:
        """Wait until ``what`` is true; the job must not end before."""
        deadline = time.monotonic() + minutes * MINUTES
        while True:
            state = self.field("JobState")  # asked first: the job may end while it is looked for
            if what():
                return
            assert state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), f"{state}\n{self.said()}"
            assert time.monotonic() < deadline, f"{state}\n{self.said()}"
            time.sleep(0.1)

    def until_said(self, text: str, times: int = 1) -> None:
        self.until(lambda: self.said().count(text) >= times)

    def ended(self, minutes: float = 8) -> str:
        """Wait until it has ended; its last state."""
        deadline = time.monotonic() + minutes * MINUTES
        while (state := self.field("JobState")) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"):
            assert time.monotonic() < deadline, f"{state}\n{self.said()}"
            time.sleep(0.2)
        return state

    def signal(self, word: str, number: signal.Signals, rank: int = 0) -> None:
        os.kill(self.processes(word)[rank].pid, number)


def rows(folder: Path) -> list[int]:
    """The steps that a run has recorded, in the order of the file."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["step"] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
