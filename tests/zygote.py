"""Command lines of the CPU lane without the seconds that importing takes: forks of a process that has imported it all.

``start`` and ``run`` have the program started by the zygote, a process that begins with the first of them and ends with
the tests. What it forks is in a session of its own, has the working directory, environment and pipes that were given,
finds modules on PYTHONPATH, and ends as an interpreter would. That the real interpreter does the same as such a fork is
what ``program.fresh`` is for.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT

# Sums in one order on every x86-64 machine of the last ten years: what is frozen of a game is so everywhere.
SAME_SUMS = {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

_LARGEST = 1 << 18
_control: socket.socket | None = None


def environment() -> dict[str, str]:
    """What a program of the tests finds: this checkout, one thread, sums in one order."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | SAME_SUMS | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def nemo_magic(*words: str) -> dict[str, Any]:
    """``nemo-magic WORDS``, as a request."""
    return {"kind": "cli", "words": list(words)}


def module(name: str, *words: str) -> dict[str, Any]:
    """``python -m NAME WORDS``, of a module with a function ``main``, as a request."""
    return {"kind": "module", "name": name, "words": list(words)}


def script(path: Path, *words: str, ranks: int = 0) -> dict[str, Any]:
    """``python PATH WORDS``, or the same by ``torchrun`` where ``ranks`` are given, as a request."""
    return {"kind": "script", "path": str(path), "words": list(words), "ranks": ranks}


class Forked:
    """A program that the zygote forked, with what is used here of ``subprocess.Popen``."""

    def __init__(self, request: Mapping[str, Any], status: int, out: IO[Any] | None, err: IO[Any] | None) -> None:
        self.args = request.get("words", ())
        self.stdout, self.stderr = out, err
        self.returncode: int | None = None
        self._status, self._said = status, b""
        while b"\n" not in self._said:
            self._read(None)
        self.pid = int(self._said.partition(b"\n")[0])

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """All that it and whoever shares its pipes say, once nobody has them open any more."""
        found: dict[str, Any] = {}

        def read(name: str, file: IO[Any]) -> None:
            found[name] = file.read()

        named = {"out": self.stdout, "err": self.stderr}
        readers = [threading.Thread(target=read, args=item, daemon=True) for item in named.items() if item[1]]
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        return found.get("out"), found.get("err")

    def _wait(self, timeout: float | None) -> int | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            if not self._read(None if deadline is None else max(0, deadline - time.monotonic())):
                return None
            if self._said.count(b"\n") == 2:
                self.returncode = int(self._said.split(b"\n")[1])
                os.close(self._status)
        return self.returncode

    def _read(self, timeout: float | None) -> bool:
        """Take what the zygote tells of it; whether it did within ``timeout``."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if not selector.select(timeout):
                return False
        said = os.read(self._status, 64)
        if not said:
            raise RuntimeError("the zygote of the tests is gone; what it forked went with it")
        self._said += said
        return True


def start(
    request: Mapping[str, Any],
    *,
    stdout: Any = None,
    stderr: Any = None,
    text: bool = False,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    limits: Mapping[int, int] | None = None,
) -> Forked:
    """Start what ``request`` says. ``stdout``, ``stderr``: PIPE, a file, or None for that of the tests; ``stderr`` may
    be STDOUT. ``limits``: resource (``resource.RLIMIT_…``) → soft and hard limit."""
    ours: list[IO[Any] | None] = []
    theirs: list[int] = []
    opened: list[int] = []
    for wanted, default in ((stdout, 1), (stderr, 2)):
        if wanted == PIPE:
            reading, writing = os.pipe()
            ours.append(open(reading, encoding="utf-8" if text else None, mode="r" if text else "rb"))  # noqa: SIM115
            theirs.append(writing)
            opened.append(writing)
        else:
            ours.append(None)
            theirs.append(theirs[0] if wanted == STDOUT else default if wanted is None else wanted.fileno())
    status, told = os.pipe()
    opened.append(told)
    whole = {
        **request, "cwd": str(cwd or os.getcwd()), "env": dict(environment() if env is None else env),
        "limits": [[name, value] for name, value in (limits or {}).items()],
    }  # fmt: skip
    socket.send_fds(_zygote(), [json.dumps(whole).encode()], [*theirs, told])
    for descriptor in opened:
        os.close(descriptor)
    return Forked(request, status, *ours)


def run(
    request: Mapping[str, Any], timeout: float, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run to the end, with all that it said."""
    running = start(request, stdout=PIPE, stderr=PIPE, text=True, env=env, **options)
    try:
        out, err = running.communicate(timeout)
    except BaseException:
        running.kill()
        raise
    return subprocess.CompletedProcess(running.args, running.wait(), out, err)


def _zygote() -> socket.socket:
    global _control
    if _control is None:
        sys.audit("tests.zygote")
        _control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (_control, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST)
        with theirs:
            subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()], env=environment(), cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
    else:
        sys.audit("tests.zygote")
    return _control


# --- in the zygote


def _be_zygote(control: socket.socket, parent: int) -> None:
    import warnings

    from nemo_magic.child_processes import die_with_parent
    from nemo_magic.compat import cpu

    die_with_parent(parent)
    warnings.simplefilter("ignore")
    before = dict(os.environ)
    cpu.install(announce=False)
    _import_everything()
    # What was imported has set variables, and would not be imported again to do so.
    added = {name: value for name, value in os.environ.items() if name not in before}
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    awake, wake = socket.socketpair()
    for end in (awake, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    running: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(awake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is awake:
                    awake.recv(4096)
                    continue
                data, descriptors, _, _ = socket.recv_fds(control, _LARGEST, 4)
                if not data:
                    return  # the tests have ended
                out, err, told = descriptors
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (control.fileno(), awake.fileno(), wake.fileno(), told, *running.values()):
                        os.close(descriptor)
                    selector.close()
                    _be_program(json.loads(data), added, out, err)
                for descriptor in (out, err):
                    os.close(descriptor)
                running[pid] = told
                os.write(told, f"{pid}\n".encode())
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in running:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(running[pid], f"{os.waitstatus_to_exitcode(status)}\n".encode())
                    os.close(running.pop(pid))


def _import_everything() -> None:
    for name in (
        "nemo_magic.cli", "nemo_magic.training.coevolution", "nemo_magic.training.sft", "nemo_magic.league.cross_play",
        "nemo_magic.evaluation.runner", "nemo_magic.rollout.local_policies", "nemo_magic.serving.server",
        "nemo_magic.actors.nemo_aligner.builder", "nemo_magic.judge.server", "nemo_magic.judge.local",
        "nemo_magic.launcher", "nemo_magic.report.page", "nemo_magic.report.evaluation_page", "torch.utils.tensorboard",
        "httpcore", "multiprocessing.managers", "multiprocessing.popen_spawn_posix",
    ):  # fmt: skip
        importlib.import_module(name)


def _be_program(request: dict[str, Any], added: Mapping[str, str], out: int, err: int) -> None:
    """In a fork: begin as an interpreter that was started would, and end as it would."""
    from nemo_magic.child_processes import die_with_parent

    status = 1
    try:
        die_with_parent(os.getppid())
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for theirs, ours in ((out, 1), (err, 2)):
            os.dup2(theirs, ours)
        for descriptor in {out, err}:
            os.close(descriptor)
        os.chdir(request["cwd"])
        for limit, value in request["limits"]:
            resource.setrlimit(limit, (value, value))
        os.environ.clear()
        os.environ.update({**added, **request["env"]})
        _find_modules(os.environ.get("PYTHONPATH", "").split(os.pathsep))
        status = _status_of(request)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                file.flush()
        os._exit(status)


def _find_modules(path: Sequence[str]) -> None:
    sys.path[:0] = [entry for entry in path if entry and entry not in sys.path]
    for entry in path:
        site = Path(entry) / "sitecustomize.py"
        if entry and site.is_file():
            runpy.run_path(str(site))
            break


def _status_of(request: dict[str, Any]) -> int:
    if request["kind"] == "cli":
        from nemo_magic import cli

        sys.argv = [cli.__file__, *request["words"]]
        return cli.main(request["words"])
    if request["kind"] == "module":
        found = importlib.import_module(request["name"])
        sys.argv = [str(found.__file__), *request["words"]]
        return found.main(request["words"]) or 0
    if not request["ranks"]:
        return _script(request)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    world = str(request["ranks"])
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["TORCHELASTIC_RUN_ID"] = "none"  # torchrun's own, by which Lightning knows who started it
    return _ranks(request, shared)


def _ranks(request: dict[str, Any], shared: dict[str, str]) -> int:
    """torchrun's part: the first that fails ends the others."""
    from nemo_magic.compat import cpu

    pids = []
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
            os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"})
            cpu.tell_rank(rank)
            return _script(request)
        pids.append(pid)
    failed = 0
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        if status and not failed:
            failed = os.waitstatus_to_exitcode(status)
            for other in pids:
                os.kill(other, signal.SIGTERM)
    return failed if failed >= 0 else 128 - failed


def _script(request: dict[str, Any]) -> int:
    sys.argv = [request["path"], *request["words"]]
    sys.path.insert(0, str(Path(request["path"]).parent))
    runpy.run_path(request["path"], run_name="__main__")
    return 0


if __name__ == "__main__":
    _be_zygote(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
