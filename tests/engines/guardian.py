"""``python guardian.py COMMAND…``: runs it until standard input ends, then kills every process of this session.

vLLM's engine and its worker outlive a server that is killed. Whoever holds the other end of the pipe may be killed too:
nothing of it is left.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def processes_of(session: int) -> list[int]:
    """The process ids of a session, without those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def main(command: list[str]) -> None:
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while running.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    while others := set(processes_of(os.getpid())) - {os.getpid()}:
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
