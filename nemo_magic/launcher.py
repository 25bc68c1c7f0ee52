"""Starting ranks: on one machine by torch's own process starter; under Slurm or torchrun they are started already.

On CPU the ranks are forks of a process that has imported everything once; with a GPU they are interpreters of their
own.
"""

from __future__ import annotations

import gc
import logging as std_logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nemo_magic.child_processes import die_with_parent
from nemo_magic.config import ConfigError, MagicConfig, TrainerConfig
from nemo_magic.fsync_io import replace_durably
from nemo_magic.runtime.killed import KernelMemory
from nemo_magic.runtime.preemption import SAVE_SIGNALS
from nemo_magic.runtime.started_rank import is_batch_script, is_rank_zero, started_rank

if TYPE_CHECKING:
    from nemo_magic.judge.local import LocalJudge

_RUN_ID = "nemo-magic-"
_PARENT = "NEMO_MAGIC_LAUNCHER"

ENDS_WITHIN = 30
"""Seconds that the remaining ranks get when one has died, or the launcher was interrupted; then they are killed."""


def is_rank(trainer: TrainerConfig, environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process was started as one rank of many, by torchrun or by srun. In a batch script, whatever the
    number of its job's tasks, it was not: one machine's ranks are started from it, as from a shell.

    Raises:
        ConfigError: it was, but of another number of ranks than ``trainer`` asks for.
    """
    wanted = trainer.num_nodes * trainer.devices
    started = started_rank(environ)
    if started is None:
        if trainer.num_nodes > 1:
            where = "this batch script is one process" if is_batch_script(environ) else "one machine is all there is"
            raise ConfigError(
                f"trainer.num_nodes={trainer.num_nodes}: start the ranks with srun, {trainer.devices} tasks per node; "
                f"without it {where}"
            )
        return False
    if started.size != wanted:
        raise ConfigError(
            f"{started.size} ranks were started ({started.by}), but trainer.num_nodes={trainer.num_nodes} × "
            f"trainer.devices={trainer.devices} = {wanted}"
        )
    return True


def is_first_process(environ: Mapping[str, str] | None = None) -> bool:
    """Whether nobody else speaks for the run: the process that starts the ranks, or rank 0 where somebody else did."""
    environ = os.environ if environ is None else environ
    if environ.get("TORCHELASTIC_RUN_ID", "").startswith(_RUN_ID):
        return False
    return is_rank_zero(environ)


@dataclass(frozen=True)
class Fork:
    """How ranks are forked: ``load`` imports what they need, once, and ``main`` is what each does with its command
    line, until it returns a status."""

    load: Callable[[], None]
    main: Callable[[Sequence[str]], int]


def launch(
    argv: Sequence[str],
    trainer: TrainerConfig,
    passed_on: Sequence[signal.Signals] = SAVE_SIGNALS,
    fork: Fork | None = None,
    once_started: Sequence[Callable[[], None]] = (),
    note: Path | None = None,
) -> int:
    """Run the same command line as ``trainer.devices`` ranks here; the status of the first that failed, or 0.

    The signals ``passed_on`` go to the ranks instead of ending the launcher. When a rank dies, the others are ended
    within ``ENDS_WITHIN`` seconds. Negative statuses (a rank was killed by a signal) become 128 + the signal.

    With ``fork`` the ranks are forks of this process, unless it has threads; without, interpreters of their own.
    ``once_started`` are called once they are there: what begins a thread waits for it. ``note``: a file that is told,
    beside stderr, of a rank that was killed, and why.
    """
    memory = KernelMemory()
    if trainer.accelerator == "cpu":
        # One core a rank: with more threads the ranks wait for each other. It counts where torch is not imported yet.
        os.environ["OMP_NUM_THREADS"] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException

    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        # Lightning would take the rank from a surrounding allocation instead of from the launcher.
        del os.environ[name]
    ranks = _start(argv, trainer.devices, fork)
    for begin in once_started:
        begin()

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
        why = f": {memory.why_killed(trainer.devices)}" if -failure.exitcode == signal.SIGKILL else ""
        words = f"rank {rank} was killed by {name}, and the others were ended{why}"
        print(f"nemo-magic: {words}", file=sys.stderr)
        if note is not None:
            with suppress(OSError):
                replace_durably(note, f"{words}\n")
        return 128 - failure.exitcode
    return failure.exitcode


def _start(argv: Sequence[str], devices: int, fork: Fork | None) -> Any:
    """The ranks' torch.distributed.elastic.multiprocessing.PContext."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    shared = {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RUN_ID": f"{_RUN_ID}{uuid.uuid4().hex}",
        _PARENT: str(os.getpid()),
    }
    envs = {rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(devices)}
    std_logging.getLogger("torch.distributed.elastic").setLevel(std_logging.CRITICAL)
    entrypoint: Any = sys.executable
    words: tuple[Any, ...] = ("-m", "nemo_magic.cli", *argv)
    if fork is not None:
        fork.load()
        if _threads() == 1:
            entrypoint, words = _be_rank, (fork.main, argv)
            # What is there is shared by all ranks as long as nobody writes to it, and a collector would.
            gc.collect()
            gc.freeze()
    return start_processes(
        name="rank",
        entrypoint=entrypoint,
        args=dict.fromkeys(range(devices), words),
        envs=envs,
        logs_specs=DefaultLogsSpecs(),
        start_method="fork",
    )


def _be_rank(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """In a fork: what an interpreter of its own would begin with, and the rank's work."""
    from nemo_magic.compat import cpu

    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_with_launcher()
    cpu.tell_rank(int(os.environ["RANK"]))
    sys.argv = [sys.argv[0], *argv]
    try:
        status = main(argv)
    except Exception:
        # torch would keep it to itself.
        sys.excepthook(*sys.exc_info())
        status = 1
    if status:
        sys.exit(status)


def _threads() -> int:
    """How many threads this process has, native ones included: what another one holds, a fork never gets (Linux)."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


def die_with_launcher() -> None:
    """In a rank that ``launch`` started: be killed when the launcher goes, however it goes (Linux)."""
    if launcher := os.environ.get(_PARENT):
        die_with_parent(int(launcher))


def local_judge(cfg: MagicConfig) -> LocalJudge:
    """The run's own judge, a context manager; its output goes to the run's folder. Nobody watches over it until
    ``supervise`` is called: a process that still has to fork starts no thread."""
    from nemo_magic.judge.local import launch_local

    log = Path(cfg.exp_manager.explicit_log_dir) / "judge.log"
    return launch_local(cfg.judge, log, supervised=False)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
