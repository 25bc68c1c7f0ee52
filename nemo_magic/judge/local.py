"""A server process on this machine that judges for one run and lives as long as it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import httpx
from typing_extensions import Self

from nemo_magic.fsync_io import private_folder
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.errors import JudgeUnavailable
from nemo_magic.net.hosts import http_url

logger = logging.getLogger(__name__)

RESTART_DELAY = 0.5
"""Seconds before a server that died is started again; doubled while it keeps dying young."""
MAX_RESTART_DELAY = 30.0
YOUNG = 60.0


class LocalJudge:
    """A running server at ``url``; see ``launch_local``. A context manager that ends it."""

    def __init__(self, cfg: JudgeConfig, log: Path | None, start_timeout: float) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nemo-magic-judge-")
        self._log = log or Path(self._folder.name) / "judge.log"
        self._stop_timeout = cfg.server.drain_timeout + 5
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._supervisor: threading.Thread | None = None
        self._process = self._spawn(cfg)
        try:
            self.url = self._wait_ready(cfg.server.host, start_timeout)
        except BaseException:
            self.close()
            raise
        self.config = cfg.at(self.url)
        # A server that died comes back where the clients look for it.
        port = httpx.URL(self.url).port or cfg.server.port
        self._again = replace(cfg, server=replace(cfg.server, port=port))

    def supervise(self) -> None:
        """From now on, in a thread: start the server again where it dies."""
        if self._supervisor is None:
            self._supervisor = threading.Thread(target=self._supervise, name="judge-supervisor", daemon=True)
            self._supervisor.start()

    @property
    def pid(self) -> int:
        """Process id of the server now running."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the server finish what it has, then end it."""
        self._closing.set()
        with self._lock:
            self._process.terminate()
            try:
                self._process.wait(timeout=self._stop_timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._supervisor is not None:
            self._supervisor.join()
        self._folder.cleanup()

    def _spawn(self, cfg: JudgeConfig) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        (folder / "judge.json").write_text(json.dumps(asdict(cfg)))
        command = [sys.executable, "-m", "nemo_magic.judge.server", "--config", str(folder / "judge.json")]
        command += ["--port-file", str(folder / "port"), "--parent-pid", str(os.getpid())]
        private_folder(self._log.parent)
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the trainer, which still needs the judge to end its step.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # It finds a guard's module where this process does.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )

    def _wait_ready(self, host: str, timeout: float) -> str:
        port_file = Path(self._folder.name) / "port"
        deadline = time.monotonic() + timeout
        with httpx.Client(timeout=1.0, trust_env=False) as http:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    status = self._process.returncode
                    raise JudgeUnavailable(f"the local judge ended with status {status} at its start:\n{self._tail()}")
                if port_file.exists():
                    url = http_url(_reachable(host), port_file.read_text().strip())
                    with suppress(httpx.HTTPError):  # bound but not answering yet
                        if http.get(f"{url}/readyz").status_code == 200:
                            return url
                time.sleep(0.02)
        raise JudgeUnavailable(f"the local judge is not ready after {timeout:g} s:\n{self._tail()}")

    def _supervise(self) -> None:
        delay = 0.0
        while True:
            born = time.monotonic()
            status = self._process.wait()
            young = time.monotonic() - born < YOUNG
            delay = min(2 * delay, MAX_RESTART_DELAY) if young and delay else RESTART_DELAY
            if self._closing.wait(delay):
                return
            with self._lock:
                if self._closing.is_set():
                    return
                logger.warning("the local judge ended with status %d; starting it again at %s", status, self.url)
                self._process = self._spawn(self._again)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def launch_local(
    cfg: JudgeConfig, log: Path | None = None, start_timeout: float = 60.0, supervised: bool = True
) -> LocalJudge:
    """Start a server for ``cfg.guard`` in a process of its own and wait until it is ready.

    It ends with this process, however this process ends, and is started again on its port if it dies first: where it is
    not ``supervised`` yet, only from a call of ``supervise`` on, which begins a thread. ``log`` takes its output
    (otherwise kept in a temporary folder). Clients use ``.config``, which is ``cfg.at(url)``.
    Raises JudgeUnavailable with the end of its log if it is not ready within ``start_timeout`` seconds.
    """
    judge = LocalJudge(cfg, log, start_timeout)
    if supervised:
        judge.supervise()
    return judge


def _reachable(host: str) -> str:
    """An address by which this machine reaches a server bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
