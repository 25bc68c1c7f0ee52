"""A checkpoint is written by a fork of a process with threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys, threading
if sys.argv[1] == "guarded":
    from nemo_magic.compat import cpu
    cpu.install()
    import nemo_magic.actors.weights
sys.setswitchinterval(1000)  # a thread runs only when another one waits
begin, finished = threading.Event(), False
def work():
    global finished
    begin.wait()
    finished = True
thread = threading.Thread(target=work)
thread.start()
begin.set()
child = os.fork()
if child == 0:
    os._exit(0 if finished else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def _forked(how: str) -> int:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", PROGRAM, how], env=env, stdout=subprocess.DEVNULL).returncode


def test_a_fork_lets_threads_finish_what_they_are_at() -> None:
    assert _forked("plain") == 3
    assert _forked("guarded") == 0
