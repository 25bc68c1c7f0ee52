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

_RANK = "NEMO_MAGIC_RANK"
"""The process id of the rank that a spawned process belongs to; multiprocessing names the parent too late."""
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Be killed when this process's parent, whose id is ``parent``, goes, however it goes (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it went before we asked
            os.kill(os.getpid(), signal.SIGKILL)


def bind_children() -> None:
    """Make every process that this one spawns from now on end with it."""
    os.environ[_RANK] = str(os.getpid())
    # Whatever this process began as: a module, a console script, or a fork of either.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("nemo_magic.child_processes")


if __name__ == "__mp_main__" and _RANK in os.environ:
    die_with_parent(int(os.environ[_RANK]))
    for _number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(_number, signal.SIG_IGN)
