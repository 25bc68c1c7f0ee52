"""A Slurm of its own on this machine: slurmctld, munged and several slurmd, in a folder, gone when the context ends.

As a program it runs one command in such a cluster: ``python tests/slurm/mini_slurm.py FOLDER sinfo``.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue")
PACKAGES = ("slurm-wlm", "munge")
CONF = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits as long as a credential lives: two minutes unless it is said.
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool_%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd_%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=15
JobRequeue=1
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


class NoSlurmError(Exception):
    """There is no Slurm here, and none can be had."""


class MiniSlurm:
    """``nodes`` virtual nodes n1, n2, … of four cores each; they share this machine and its loopback address."""

    def __init__(self, home: Path, nodes: int) -> None:
        install()
        self.home, self.nodes = home, nodes
        self.conf = home / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a user's shell has."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return own | {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        host, first = socket.gethostname().split(".")[0], _free_ports(self.nodes + 1)
        for folder in ("state", *(f"spool_n{n}" for n in range(1, self.nodes + 1))):
            (self.home / folder).mkdir(parents=True)
        # munged trusts a socket only below folders that others cannot write to, but can enter.
        self.home.chmod(0o755)
        self.conf.write_text(
            CONF.format(
                host=host, home=self.home, port=first, nodes=self.nodes, first=first + 1, last=first + self.nodes
            )
        )
        atexit.register(self.close)
        try:
            key = self.home / "munge.key"
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
            munge = [f"--{name}-file={self.home / name}" for name in ("pid", "log", "seed")]
            self.start(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.home}/munge.socket", *munge
            )
            _until((self.home / "munge.socket").exists, "munged does not listen", self.logs)
            self.start("slurmctld", "-D", "-f", str(self.conf))
            for number in range(1, self.nodes + 1):
                self.start_node(f"n{number}")
            _until(self.ready, "the nodes do not become idle", self.logs)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, program: str, *words: str, name: str | None = None) -> None:
        log = (self.home / f"{name or program}.out").open("ab")
        self.daemons[name or program] = subprocess.Popen(
            [program, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment
        )

    def start_node(self, node: str) -> None:
        self.start("slurmd", "-D", "-f", str(self.conf), "-N", node, name=node)

    def run(self, *words: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What a user's command prints; it must succeed."""
        done = subprocess.run(
            words, env=self.environment | dict(environ or {}), cwd=cwd, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ready(self) -> bool:
        listed = subprocess.run(
            ["sinfo", "-h", "-o", "%D %t"], env=self.environment, capture_output=True, text=True
        ).stdout.split()
        return listed == [str(self.nodes), "idle"]

    def field(self, job: str, name: str) -> str:
        """A field of ``scontrol show job``, of the first component."""
        words = self.run("scontrol", "-o", "show", "job", job).splitlines()[0].split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def processes(self, **environ: str) -> list[int]:
        """Processes of this cluster's jobs that have these variables; all of this cluster's when none is given."""
        found, wanted = [], {f"{key}={value}" for key, value in ({"SLURM_CONF": str(self.conf)} | environ).items()}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((path / "environ").read_text(errors="replace").split("\0")):
                    found.append(int(path.name))
        return [pid for pid in found if pid != os.getpid()]

    def kill_node(self, node: str) -> None:
        """As if its power went: daemon, step daemons and everything that jobs run there, at once."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        stepds = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if _command(path).startswith("slurmstepd") and str(self.home / f"slurmd_{node}.log") in _open_files(path)
        ]
        # One that lived on would report the end of what it ran, as no dead node does.
        assert stepds, f"no step daemons found on {node}"
        for pid in [*stepds, *self.processes(SLURMD_NODENAME=node)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in self.home.glob("*.out")
        )

    def close(self) -> None:
        """End everything this cluster started, whatever state it is in."""
        atexit.unregister(self.close)
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["scancel", "-u", "root", "--quiet"], env=self.environment, capture_output=True, timeout=10)
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def install() -> None:
    """Have Slurm on this machine.

    Raises:
        NoSlurmError: it is not here and cannot be installed; the message says why.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoSlurmError(f"{', '.join(missing)} not found: as root on Debian, apt-get install {' '.join(PACKAGES)}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-qq", *words], env=quiet, capture_output=True, text=True)
        if done.returncode != 0:
            raise NoSlurmError(f"apt-get {' '.join(words)}: {done.stderr[-2000:]}")


def _until(what: Callable[[], bool], otherwise: str, logs: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        if time.monotonic() > deadline:
            raise NoSlurmError(f"{otherwise}\n{logs()}")
        time.sleep(0.1)


def _free_ports(count: int) -> int:
    """The first of ``count`` neighbouring ports that nobody listens at."""
    for first in range(17000 + os.getpid() % 1000 * 10, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.create_server(("", port)):
                    pass
        except OSError:
            continue
        return first
    raise NoSlurmError("no free ports between 17000 and 32000")


def _command(process: Path) -> str:
    with suppress(OSError):
        return (process / "cmdline").read_text(errors="replace")
    return ""


def _open_files(process: Path) -> str:
    names = []
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                names.append(os.readlink(link))
    return "\n".join(names)


if __name__ == "__main__":
    with MiniSlurm(Path(sys.argv[1]), nodes=3) as cluster:
        sys.exit(subprocess.run(sys.argv[2:], env=cluster.environment, check=False).returncode)
