"""Ends a run that hangs, and writes which rank of which node hung, and where. Imports neither torch nor NeMo.

A thread per rank looks at whether the rank still moves from part to part of a step (``Timers``). Where nothing has
moved for ``exp_manager.hang_timeout`` seconds it raises an alarm, a file that every rank's thread watches for; each
then writes down where its own rank is, and ends its process. ``postmortem`` reads what they wrote.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from typing_extensions import Self

from nemo_magic.fsync_io import replace_durably

FOLDER = "hangs"
HOSTS = "hosts.json"
EXIT_HUNG = 70
"""A rank, or the others with it, did not move (EX_SOFTWARE)."""

GRACE = 30.0
"""Seconds after an alarm that every rank has to write down where it is; shared file systems tell each other late."""


class ProgressSource(Protocol):
    """What is watched: a count that grows as long as the rank gets on, and the part it is in."""

    @property
    def moves(self) -> int:
        """Grows as long as the rank makes progress."""

    @property
    def where(self) -> str:
        """The part of the step that is under way."""


@dataclass(frozen=True)
class RankPosition:
    """Where a rank was found.

    ``moved_ago``: seconds since it last moved; ``stacks``: thread name → innermost frame first; ``grace``: seconds
    after the alarm within which this had to be written; ``children``: process ids of what it had forked and had not
    ended, as a checkpoint's writers are.
    """

    attempt: str
    rank: int
    world: int
    host: str
    pid: int
    step: int
    part: str
    moves: int
    moved_ago: float
    stacks: dict[str, list[str]]
    grace: float = GRACE
    children: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Hosts:
    """Where the ranks of an attempt run, rank 0 first: a rank that hangs may not be able to say so itself."""

    attempt: str
    names: list[str]


def host_of_process() -> str:
    """The node's name, Slurm's where it has one: a container may go by another."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def attempt_of_process() -> str:
    """What all ranks of one start of a run have in common, and no other start has."""
    environ = os.environ
    if "SLURM_JOB_ID" in environ:
        return f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_RESTART_COUNT', '0')}"
    return environ.get("TORCHELASTIC_RUN_ID", f"pid-{os.getpid()}")


def alarm_of(folder: Path, attempt: str) -> Path:
    """What is there once a rank of this attempt hangs, as old as that is."""
    return folder / f"alarm-{attempt}"


class Watchdog:
    """Watches this rank within its context; does nothing where ``timeout`` is None.

    Args:
        run: the run's folder, which all ranks share.
        timeout: seconds without a move that are a hang: longer than the longest part of a step, and than a checkpoint.
        hosts: where each rank of the world runs (``host_of_process``).
        timers: what makes progress.
        step: the step under way.
        end: how the process ends; os._exit, since a thread that hangs in a collective cannot be asked to.
    """

    def __init__(
        self,
        run: Path,
        timeout: float | None,
        rank: int,
        hosts: Sequence[str],
        timers: ProgressSource,
        step: Callable[[], int],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._timeout = run / FOLDER, timeout
        self._grace = GRACE if timeout is None else min(GRACE, timeout)
        self._rank, self._hosts = rank, list(hosts)
        self._timers, self._step, self._end = timers, step, end
        self._attempt = attempt_of_process()
        self._alarm = alarm_of(self._folder, self._attempt)
        self._main = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._timeout is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            if self._rank == 0:
                _write(self._folder / HOSTS, Hosts(self._attempt, self._hosts))
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._timeout is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    @property
    def _path(self) -> Path:
        return self._folder / f"rank-{self._rank:04d}.json"

    def _watch(self) -> None:
        assert self._timeout is not None
        last, since = -1, time.monotonic()
        while not self._over.wait(min(5.0, self._timeout / 10)):
            # Should a native call keep the interpreter to itself, this thread stands still, and that is what is left.
            faulthandler.dump_traceback_later(self._timeout + 2 * self._grace, exit=True)
            if self._timers.moves != last:
                last, since = self._timers.moves, time.monotonic()
            idle = time.monotonic() - since
            hung = idle >= self._timeout
            if hung or self._alarm.exists():
                self._report(idle, hung)
                return

    def _report(self, idle: float, hung: bool) -> None:
        position = self._position(idle)
        _write(self._path, position)
        if hung and not self._alarm.exists():
            self._alarm.touch()
        # The first that ends takes the others with it: all of them write first.
        time.sleep(self._grace)
        if self._over.is_set() and not hung:
            return
        because = f"nothing moved for {idle:.0f} s" if hung else "another rank hangs"
        where = f"in step {position.step}, {position.part}; see {self._path}"
        print(f"nemo-magic: rank {self._rank} on {position.host}: {because}, {where}", file=sys.stderr, flush=True)
        self._end(EXIT_HUNG)

    def _position(self, idle: float) -> RankPosition:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = {}
        for ident, frame in sys._current_frames().items():
            if ident != threading.get_ident():
                name = "main" if ident == self._main else names.get(ident, str(ident))
                stacks[name] = [
                    f"{f.filename}:{f.lineno} {f.name}" for f in reversed(traceback.extract_stack(frame, limit=60))
                ]
        return RankPosition(
            self._attempt,
            self._rank,
            len(self._hosts),
            self._hosts[self._rank],
            os.getpid(),
            self._step(),
            self._timers.where,
            self._timers.moves,
            round(idle, 1),
            stacks,
            self._grace,
            [child.pid for child in multiprocessing.active_children() if child.pid is not None],
        )


def _write(path: Path, value: RankPosition | Hosts) -> None:
    replace_durably(path, json.dumps(asdict(value), indent=1))
