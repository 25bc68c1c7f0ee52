"""A server's engine and worker end with whoever started the server, however the server or its starter ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.engines import guardian

pytestmark = pytest.mark.process

# A server that starts an engine, which starts a worker; each says who it is, and would stay for an hour.
SERVER = (
    "import os, subprocess, sys; depth = int(sys.argv[2]); print(os.getpid(), flush=True);"
    "depth and subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[1], str(depth - 1)]);"
    "import time; time.sleep(3600)"
)


@pytest.mark.parametrize("end", ["the pipe closes", "the server is killed"])
def test_nothing_of_a_server_outlives_its_guardian(end: str) -> None:
    command = [sys.executable, guardian.__file__, sys.executable, "-c", SERVER, SERVER, "2"]
    running = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdin is not None
    assert running.stdout is not None
    with running:
        server, engine, worker = (int(running.stdout.readline()) for _ in range(3))
        assert {server, engine, worker, running.pid} == set(guardian.processes_of(running.pid))
        if end == "the server is killed":
            os.kill(server, signal.SIGKILL)
        else:
            running.stdin.close()
        assert running.wait(timeout=60) == 0
    assert guardian.processes_of(running.pid) == []
