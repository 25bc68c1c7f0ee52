"""One process owns a run's folder: who it is, and when it is gone. Imports neither torch nor NeMo.

The owner is named in ``owner-NNNN.json``. Who takes the folder over creates the file of the next number, exclusively,
and removes the ones before: of two that find the same owner gone, one gets it. To create a file exclusively is what all
shared file systems do in one step; filelock's leases swap two names to take over from the dead, which NFS cannot, and
leave such a folder locked.

Locks of the kernel would be released by a death, but some network file systems keep them to each host. So it is asked
whether the owner lives: its process, on the same machine; Slurm, of another job; else its file, which a living owner
touches every few seconds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from nemo_magic.fsync_io import private_folder, replace_durably
from nemo_magic.runtime.errors import FolderInUseError

LEASE, BEAT = 60.0, 5.0
"""Seconds of silence after which an owner that nobody can ask is gone, and between its signs of life."""

EXIT_LOST = 1
"""Somebody else owns the folder: a process that was stopped for longer than ``LEASE`` must not go on writing."""


@dataclass(frozen=True)
class Owner:
    """Who owns a folder. ``machine``: boot and pid namespace, within which ``pid`` and ``begun`` (in ticks since the
    boot; None where the system does not tell) name one process. ``job``, ``restart``: Slurm's, of its job."""

    host: str
    machine: str
    pid: int
    begun: str | None
    job: str | None
    restart: int
    since: str
    released: bool = False

    @classmethod
    def of_process(cls) -> Owner:
        """This process, from now on."""
        job = os.environ.get("SLURM_JOB_ID")
        return cls(
            host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            begun=begun(os.getpid()),
            job=job,
            restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")) if job else 0,
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        job = f" of Slurm's job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def machine() -> str:
    """What two processes have in common that can ask for each other by process id."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def begun(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where it is gone, or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def slurm_job_lives(job: str) -> bool | None:
    """Whether Slurm still runs a job; None where it cannot be asked."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    return any(state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING") for state in done.stdout.split())


class FolderOwner:
    """Owns ``folder`` within its context, and shows signs of life there; between ``pause`` and ``keep`` it shows none.

    Args:
        note: prints a line for the user.
        lease: seconds of silence after which an owner elsewhere, whom nobody can ask, is gone.
        job_lives: whether Slurm still runs a job; None where it cannot tell.
        lost: called when somebody else owns the folder meanwhile; it has to end the process.

    Raises:
        FolderInUseError: a living process owns it.
        OSError: it cannot be created or written to.
    """

    def __init__(
        self,
        folder: Path,
        note: Callable[[str], None],
        *,
        lease: float = LEASE,
        job_lives: Callable[[str], bool | None] = slurm_job_lives,
        lost: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._note, self._lease = folder, note, lease
        self._job_lives, self._lost = job_lives, lost
        self._self = Owner.of_process()
        self._number = 0
        self._over = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Self:
        private_folder(self._folder)
        while True:
            newest = self._newest()
            if newest and not self._is_gone(newest):
                continue  # it is another's than it was a moment ago
            if self._take(newest + 1):
                self._number = newest + 1
                for number in self._numbers():
                    if number < self._number:
                        self._path(number).unlink(missing_ok=True)
                self.keep()
                return self

    def pause(self) -> None:
        """Show no signs of life for a moment: a thread must not be there when the process forks."""
        self._over.set()
        if self._beating is not None:
            self._beating.join()
            task = Path(f"/proc/self/task/{self._beating.native_id}")
            while task.exists():  # the system's thread ends a little later than Python's
                time.sleep(0.001)
            self._beating = None

    def keep(self) -> None:
        """Show that this process lives from now on, and end it should another own the folder."""
        if self._beating is not None:
            return
        self._over.clear()
        self._beating = threading.Thread(target=self._beat, name="folder-owner", daemon=True)
        self._beating.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._self.pid:
            return  # a fork, which owns nothing
        self.pause()
        # The file stays, for numbers only grow: whoever still looks at an older one cannot take it over.
        if self._newest() == self._number:
            with suppress(OSError):
                replace_durably(self._path(self._number), _to_text(replace(self._self, released=True)))

    # --- files

    def _path(self, number: int) -> Path:
        return self._folder / f"owner-{number:04d}.json"

    def _numbers(self) -> list[int]:
        names = (path.stem.removeprefix("owner-") for path in self._folder.glob("owner-*.json"))
        return [int(name) for name in names if name.isdecimal()]

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _take(self, number: int) -> bool:
        """Whether this process was the first to create the file, and nobody has a later one."""
        try:
            with self._path(number).open("x", encoding="utf-8") as file:
                file.write(_to_text(self._self))
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        except OSError:
            self._path(number).unlink(missing_ok=True)
            raise
        if self._newest() == number:
            return True
        self._path(number).unlink(missing_ok=True)  # the folder's entries were seen late, as caches show them
        return False

    # --- the owner that there is

    def _is_gone(self, number: int) -> bool:
        """Whether this owner is; False where somebody else may be it by now. Raises FolderInUseError where it lives."""
        path = self._path(number)
        owner = _read(path)
        if owner is not None and self._lives(owner):
            raise FolderInUseError(self._in_use(owner, path))
        if owner is None or self._must_be_watched(owner):
            who = owner or "somebody who has not said who it is"
            self._note(
                f"{self._folder} belongs to {who}: looking for signs of life for up to {self._lease:.0f} s, since it "
                "cannot be asked from here"
            )
            if self._shows_life(path, number):
                raise FolderInUseError(self._in_use(_read(path) or owner or who, path))
            if self._newest() != number or _read(path) != owner:
                return False
        if owner is not None and not owner.released:
            self._note(f"{self._folder} belonged to {owner}, which is gone")
        return True

    def _lives(self, owner: Owner) -> bool:
        """Whether it is certain that the owner lives."""
        if owner.released or self._restarts(owner):
            return False
        if owner.machine == self._self.machine:
            return _process_lives(owner)
        return owner.job not in (None, self._self.job) and self._job_lives(str(owner.job)) is True

    def _must_be_watched(self, owner: Owner) -> bool:
        """Of an owner that is not certain to live: whether it is not certain that it does not either."""
        if owner.released or self._restarts(owner) or owner.machine == self._self.machine:
            return False
        return owner.job in (None, self._self.job) or self._job_lives(str(owner.job)) is None

    def _restarts(self, owner: Owner) -> bool:
        """Whether this process is of a later start of the owner's job: Slurm ended the earlier one first."""
        return owner.job is not None and owner.job == self._self.job and owner.restart < self._self.restart

    def _shows_life(self, path: Path, number: int) -> bool:
        """Whether the owner's file changes within the lease. By this process's clock only: hosts' clocks differ."""
        first, deadline = _fingerprint(path), time.monotonic() + self._lease
        while first is not None and time.monotonic() < deadline:
            time.sleep(min(1.0, self._lease / 20))
            now = _fingerprint(path)
            if now is None or self._newest() != number:
                return False  # somebody else took it, or it was removed: look again
            if now != first:
                owner = _read(path)
                return owner is None or not owner.released
        return False

    def _in_use(self, owner: object, path: Path) -> str:
        return (
            f"{self._folder} belongs to another run that goes on: {owner}. Wait for it, end it, or give this one "
            f"another name (name=..., exp_manager.explicit_log_dir). If you know that it is gone, remove {path}"
        )

    # --- this owner's life

    def _beat(self) -> None:
        while not self._over.wait(min(BEAT, self._lease / 10)):
            try:
                if self._newest() != self._number:
                    break
                os.utime(self._path(self._number))
            except OSError:
                continue  # a file system may be away for a while
        else:
            return
        print(
            f"nemo-magic: {self._folder} belongs to somebody else now (this process was not seen alive for "
            f"{self._lease:.0f} s, or its owner file was removed): it ends at once, and writes nothing more",
            file=sys.stderr,
            flush=True,
        )
        self._lost(EXIT_LOST)


def _process_lives(owner: Owner) -> bool:
    """Whether the owner's process is there, asked on its own machine: another may have its number by now."""
    now = begun(owner.pid)
    if now is not None and owner.begun is not None:
        return now == owner.begun
    if sys.platform.startswith("linux"):
        return now is not None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _to_text(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1) + "\n"


def _read(path: Path) -> Owner | None:
    """The owner that a file names; None where it names none, yet or any more."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _fingerprint(path: Path) -> tuple[int, int] | None:
    """What a sign of life changes; None where the file is gone. Opened, so that NFS asks its server."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size
