"""vLLM's own server on this machine's CPU, from the environment of the current lane."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.actors.chat_endpoint import free_url
from tests.engines import guardian

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / ".venv-current" / "bin" / "vllm"
NAME, ADAPTED = "served", "adapted"
PATIENCE = 600
"""Seconds until it answers: on two loaded cores, importing alone takes a minute."""
_OURS = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
"""Variables that its interpreter is not to have; it starts three processes that import the same, compiled once."""
_QUIET = {
    # It asks nothing of the network, tells nobody, and all its sockets are of this machine.
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
    # One thread, on whatever core is free, and a small cache.
    "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


class VllmServer:
    """``vllm serve`` of ``model`` and of PEFT's ``adapters`` on it, in fp32, on loopback; ``home`` takes its log and
    caches."""

    def __init__(self, model: Path, home: Path, positions: int, adapters: Path) -> None:
        assert VLLM.is_file(), f"{VLLM} is missing: these tests are those of `make test-engines`"
        self.url = free_url()
        port = self.url.removesuffix("/v1").rpartition(":")[2]
        self._log = home / "vllm.log"
        cache = {"VLLM_CONFIG_ROOT": str(home / "vllm"), "VLLM_CACHE_ROOT": str(home / "vllm")}
        env = {key: value for key, value in os.environ.items() if key not in _OURS}
        command = [
            sys.executable, guardian.__file__, str(VLLM), "serve", str(model),
            "--served-model-name", NAME, "--host", "127.0.0.1", "--port", port,
            "--dtype", "float32", "--enforce-eager", "--max-model-len", str(positions), "--max-num-seqs", "32",
            "--generation-config", "vllm", "--enable-lora", "--lora-modules", f"{ADAPTED}={adapters}",
            # What a random model would write between the keys of an object, to the end of its tokens.
            "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
        ]  # fmt: skip
        with self._log.open("wb") as out:
            self._running = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=env | _QUIET | cache,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.let_go()
            raise

    def chat(self, text: str, **body: Any) -> str:
        """The answer to one user message, at temperature 0."""
        found = self.ask("chat/completions", messages=[{"role": "user", "content": text}], temperature=0, **body)
        return found["message"]["content"]

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The first choice of a reply."""
        answer = httpx.post(f"{self.url}/{path}", json={"model": NAME} | body, timeout=PATIENCE, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]

    def answered(self) -> int:
        """How many requests it has answered to their end, by its own count."""
        text = httpx.get(f"{self.url.removesuffix('/v1')}/metrics", timeout=60, trust_env=False).text
        counts = re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.MULTILINE)
        return round(sum(map(float, counts)))

    def addresses(self) -> set[str]:
        """Where the processes of its session listen: the addresses of their TCP sockets, as hexadecimal as the kernel
        writes them."""
        inodes = set()
        for pid in self.processes():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    inodes.add(os.readlink(link))
        tables = [(Path("/proc/net") / table).read_text() for table in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table.splitlines()[1:]]
        return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}

    def processes(self) -> list[int]:
        """Of its session, those that have not ended."""
        return guardian.processes_of(self._running.pid)

    def let_go(self) -> None:
        """Close the pipe, as the kernel does when the tests are killed; until none of its processes is left."""
        assert self._running.stdin is not None
        self._running.stdin.close()
        self._running.wait(timeout=60)

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self._running.poll() is None, self._log.read_text(errors="replace")[-5000:]
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-5000:]
            try:
                if httpx.get(f"{self.url}/models", timeout=10, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
