"""The two environments that a checkout has, and how a test starts a program in either of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CURRENT = ROOT / ".venv-current" / "bin" / "python"
BACKENDS = ("nemo_aligner", "megatron")
MINUTES = 60


def python_of(backend: str) -> str:
    """The interpreter that has the backend's packages."""
    if backend == "nemo_aligner":
        return sys.executable
    assert CURRENT.is_file(), f"{CURRENT} is missing: these tests are those of `make test-current`"
    return str(CURRENT)


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | more


def start(backend: str, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """``nemo-magic`` as a user starts it, in a session of its own."""
    command = [python_of(backend), "-m", "nemo_magic.cli", *words]
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment(), start_new_session=True)


def run(backend: str, *words: str, status: int = 0) -> str:
    """The same to its end; what it printed."""
    command = [python_of(backend), "-m", "nemo_magic.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=12 * MINUTES, check=False, env=environment())
    assert done.returncode == status, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


def run_ranks(backend: str, module: str, words: Sequence[str], ranks: int) -> None:
    """``python -m module`` as so many ranks of one world."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [python_of(backend), "-m", module, *words],
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=8 * MINUTES)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0] * ranks, outputs[0][-5000:]
