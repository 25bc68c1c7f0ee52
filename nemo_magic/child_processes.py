"""Child processes end with their parent.

After ``bind_children`` this is the main module of a process, for those that it spawns: they import it again.
Megatron-core spawns one beside a rank to collect what was written, which must not outlive a rank that is killed, and
must outlive a signal that asks the rank to save.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
import tempfile

_RANK = "NEMO_MAGIC_RANK"
"""The process id of the rank that a spawned process belongs to; multiprocessing names the parent too late."""
_PR_SET_PDEATHSIG = 1
_SOCKET_PATH = 107 if sys.platform.startswith("linux") else 103
"""Bytes that the path of a Unix socket may have."""


def die_with_parent(parent: int) -> None:
    """Be killed when this process's parent, whose id is ``parent``, goes, however it goes (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it went before we asked
            os.kill(os.getpid(), signal.SIGKILL)


def refuse_long_temporary_folder() -> None:
    """Refuse a temporary folder in which multiprocessing's sockets would have too long a path.

    It makes them when a checkpoint is written first, and what is left of it then is an EOFError of another process.

    Raises:
        ValueError: naming the folder, and how long it may be.
    """
    folder = tempfile.gettempdir()
    room = _SOCKET_PATH - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
    if len(os.fsencode(folder)) > room:
        raise ValueError(
            f"the temporary folder {folder} has a path of {len(os.fsencode(folder))} bytes: processes of this run talk "
            f"through sockets there, whose folder may have {room}. Set TMPDIR to a shorter one, on this machine's disk"
        )


def bind_children() -> None:
    """Make every process that this one spawns from now on end with it."""
    os.environ[_RANK] = str(os.getpid())
    # Whatever this process began as: a module, a console script, or a fork of either.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("nemo_magic.child_processes")


if __name__ == "__mp_main__" and _RANK in os.environ:
    die_with_parent(int(os.environ[_RANK]))
    for _number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(_number, signal.SIG_IGN)
