"""The program as a user starts it, small and quick, for tests that watch, kill and resume it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nemo_magic.judge.config import JudgeConfig
from nemo_magic.report.records import read_records
from tests import zygote
from tests.zygote import Forked, environment

Running = Forked | subprocess.Popen[bytes]
MINUTES = 60
SMALL = ["sandbox.attack_rows=400", "sandbox.defender_rows=400", "model.num_layers=4"]
TP2 = ["model.tensor_model_parallel_size=2", "grpo.minibatches=2", "grpo.kl_beta=0.01"]


class Game:
    """Games of six rounds (D D A A D D) that start from the warmed-up pair and save after every round."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def folder(self, name: str) -> Path:
        return self.home / name

    def words(self, name: str, *overrides: str) -> list[str]:
        home = self.home
        return [
            "train", "-cn", "magic_sandbox", f"name={name}", f"exp_manager.explicit_log_dir={home / name}",
            f"sandbox.folder={home / 'sandbox'}", *SMALL,
            f"actors.attacker.restore_from_path={home / 'attacker' / 'weights'}",
            f"actors.defender.restore_from_path={home / 'defender' / 'weights'}",
            "game.max_steps=6", "game.schedule.freq=2", "game.batch_size=8", "game.val_check_interval=2",
            "game.crossplay.num_seeds=20", "exp_manager.checkpoint_callback_params.every_n_train_steps=1",
            "exp_manager.checkpoint_callback_params.keep_last=10", *overrides,
        ]  # fmt: skip

    def quick(self, name: str, *overrides: str) -> list[str]:
        """The same game without what comes after its last round."""
        return self.words(name, "game.crossplay.enabled=false", "game.strategy_sweep=null", *overrides)


def run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run to the end, and insist on how it ends."""
    return _ended(zygote.run(zygote.nemo_magic(*words), 8 * MINUTES), status)


def fresh(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The same by an interpreter of its own, as a user starts it."""
    command = [sys.executable, "-m", "nemo_magic.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=8 * MINUTES, check=False, env=environment())
    return _ended(done, status)


def _ended(done: subprocess.CompletedProcess[str], status: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == status, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def start(*words: str, log: Path, limits: Mapping[int, int] | None = None, modules: Path | None = None) -> Running:
    """Start in a session of its own, output to ``log``; ``modules`` of a folder of its own are found first."""
    env = environment()
    if modules is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(modules), env["PYTHONPATH"]])
    with log.open("ab") as out:
        return zygote.start(zygote.nemo_magic(*words), stdout=out, stderr=zygote.STDOUT, env=env, limits=limits)


def start_fresh(*words: str, log: Path) -> Running:
    """The same by the script that pip installs."""
    command = [str(Path(sys.executable).with_name("nemo-magic")), *words]
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment(), start_new_session=True)


def wait_for(what: Callable[[], object], running: Running, log: Path) -> None:
    """Wait until ``what`` is true; the program must not end before."""
    deadline = time.monotonic() + 5 * MINUTES
    while not what():
        assert running.poll() is None, f"ended with {running.returncode}:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.005)


def kill(running: Running) -> None:
    """SIGKILL to the process that the user started; the ranks and the judge have to notice by themselves."""
    running.kill()
    running.wait()


def ranks_of(running: Running) -> list[int]:
    """Process ids of the ranks, rank 0 first: forked in this order, they have the launcher's own command line."""
    mine = [(begun, pid) for pid, parent, begun in _processes() if parent == running.pid]
    return [pid for _, pid in sorted(mine) if _command(pid) == _command(running.pid)]


def processes_of(running: Running) -> list[int]:
    """Process ids of the ranks of a run and of all that they started."""
    found, processes = ranks_of(running), _processes()
    for pid in found:  # which grows meanwhile
        found += [child for child, parent, _ in processes if parent == pid]
    return found


def _processes() -> list[tuple[int, int, int]]:
    """(process id, its parent's, when it began) of all there are."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            found.append((int(path.name), int(fields[1]), int(fields[19])))
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def played(folder: Path) -> list[dict[str, Any]]:
    """Every figure of every step that is not about speed, memory or what a request went through."""
    elsewhere = ("timers/", "memory/", "throughput/", "judge/", "judge_audit/")
    return [
        {"step": r.step, "phase": r.phase} | {k: v for k, v in r.metrics.items() if not k.startswith(elsewhere)}
        for r in read_records(folder / "metrics.jsonl")
    ]


def checkpoint_sums(folder: Path, step: int) -> dict[str, Any]:
    """Checksums of the weights, optimizer states, random states and rewrites of a checkpoint."""
    sums: dict[str, Any] = json.loads((folder / f"checkpoints/step_{step:06d}/checksums.json").read_text())
    return {
        name: value for name, value in sums.items() if name.endswith((".distcp", "rewrites.json")) or "rng/" in name
    }


def counters(folder: Path, step: int) -> Any:
    """What a checkpoint holds of optimizers and learning-rate schedules beside tensors: equal by value, not by byte."""
    return torch.load(folder / f"checkpoints/step_{step:06d}/policies/common.pt", weights_only=False)


def start_judge(home: Path, folder: Path, port: int, guard: str = "rules") -> tuple[Running, int]:
    """A judge of the sandbox in ``home``, outside of the run. Returns it and its port."""
    world = {"world": str(home / "sandbox" / "world.json")}
    config = asdict(JudgeConfig(guard=guard, guard_config=world if guard == "rules" else {}))
    config["server"]["port"] = port
    (folder / "judge.json").write_text(json.dumps(config))
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    words = ["--config", str(folder / "judge.json"), "--port-file", str(port_file)]
    judge = zygote.start(zygote.module("nemo_magic.judge.server", *words))
    log = folder / "judge.log"
    log.touch()
    wait_for(port_file.exists, judge, log)
    return judge, int(port_file.read_text())


def steps(folder: Path) -> int:
    """How many rows of figures a run has written, the one of the start included."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0
