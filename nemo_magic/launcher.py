"""Starting ranks: on one machine by torch's own process starter; under Slurm or torchrun they are started already."""

from __future__ import annotations

import ctypes
import logging as std_logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from nemo_magic.config import ConfigError, MagicConfig, TrainerConfig
from nemo_magic.runtime.preemption import SAVE_SIGNALS

if TYPE_CHECKING:
    from nemo_magic.judge.local import LocalJudge

_RUN_ID = "nemo-magic-"
_PARENT = "NEMO_MAGIC_LAUNCHER"
_PR_SET_PDEATHSIG = 1

ENDS_WITHIN = 30
"""Seconds that the remaining ranks get when one has died, or the launcher was interrupted; then they are killed."""


def is_rank(trainer: TrainerConfig, environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process was started as one rank of many, by torchrun or by srun.

    Raises:
        ConfigError: it was, but of another number of ranks than ``trainer`` asks for.
    """
    environ = os.environ if environ is None else environ
    wanted = trainer.num_nodes * trainer.devices
    if "RANK" in environ and "WORLD_SIZE" in environ:
        started, by = int(environ["WORLD_SIZE"]), "WORLD_SIZE"
    # A batch script or an interactive allocation of one task has these variables too, and starts no ranks.
    elif "SLURM_PROCID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1:
        started, by = int(environ["SLURM_NTASKS"]), "SLURM_NTASKS"
    else:
        if trainer.num_nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes={trainer.num_nodes}: start the ranks with srun, {trainer.devices} tasks per node; "
                "without it one machine is all there is"
            )
        return False
    if started != wanted:
        raise ConfigError(
            f"{started} ranks were started ({by}), but trainer.num_nodes={trainer.num_nodes} × "
            f"trainer.devices={trainer.devices} = {wanted}"
        )
    return True


def is_first_process(environ: Mapping[str, str] | None = None) -> bool:
    """Whether nobody else speaks for the run: the process that starts the ranks, or rank 0 where somebody else did."""
    environ = os.environ if environ is None else environ
    if environ.get("TORCHELASTIC_RUN_ID", "").startswith(_RUN_ID):
        return False
    return environ.get("RANK", environ.get("SLURM_PROCID", "0")) == "0"


def launch(argv: Sequence[str], trainer: TrainerConfig, passed_on: Sequence[signal.Signals] = SAVE_SIGNALS) -> int:
    """Run the same command line as ``trainer.devices`` ranks here; the status of the first that failed, or 0.

    The signals ``passed_on`` go to the ranks instead of ending the launcher. When a rank dies, the others are ended
    within ``ENDS_WITHIN`` seconds. Negative statuses (a rank was killed by a signal) become 128 + the signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SignalException

    if trainer.accelerator == "cpu":
        # One core a rank: with more threads the ranks wait for each other.
        os.environ["OMP_NUM_THREADS"] = "1"
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        # Lightning would take the rank from a surrounding allocation instead of from the launcher.
        del os.environ[name]
    world = str(trainer.devices)
    shared = {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RUN_ID": f"{_RUN_ID}{uuid.uuid4().hex}",
        _PARENT: str(os.getpid()),
    }
    std_logging.getLogger("torch.distributed.elastic").setLevel(std_logging.CRITICAL)
    ranks = start_processes(
        name="rank",
        entrypoint=sys.executable,
        args=dict.fromkeys(range(trainer.devices), ("-m", "nemo_magic.cli", *argv)),
        envs={rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(trainer.devices)},
        logs_specs=DefaultLogsSpecs(),
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in ranks.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in passed_on}
    try:
        result = ranks.wait(period=0.2)
    except SignalException as error:
        ranks.close(timeout=ENDS_WITHIN)
        return 128 + int(error.sigval)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if result is None or not result.is_failed():
        return 0
    rank, failure = min(result.failures.items(), key=lambda item: item[1].timestamp)
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        print(f"nemo-magic: rank {rank} was killed by {name}, and the others were ended", file=sys.stderr)
        return 128 - failure.exitcode
    return failure.exitcode


def die_with_launcher() -> None:
    """In a rank that ``launch`` started: be killed when the launcher goes, however it goes (Linux)."""
    if launcher := os.environ.get(_PARENT):
        die_with_parent(int(launcher))


def die_with_parent(parent: int) -> None:
    """Be killed when this process's parent, whose id is ``parent``, goes, however it goes (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it went before we asked
            os.kill(os.getpid(), signal.SIGKILL)


def local_judge(cfg: MagicConfig) -> LocalJudge:
    """The run's own judge, a context manager; its output goes to the run's folder."""
    from nemo_magic.judge.local import launch_local

    return launch_local(cfg.judge, Path(cfg.exp_manager.explicit_log_dir) / "judge.log")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
