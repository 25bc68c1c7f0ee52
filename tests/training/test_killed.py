"""A killed rank is explained: by the kernel's own counters where they can be read, by sizes where they cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_magic.runtime.killed import KernelMemory
from nemo_magic.runtime.postmortem import report

V1 = (
    "4:cpu,memory:/job\n",
    "sys/fs/cgroup/memory/job/memory.oom_control",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
)
V2 = ("0::/job\n", "sys/fs/cgroup/job/memory.events", "sys/fs/cgroup/job/memory.max")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(("cgroup", "events", "limit"), [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("who", ["group", "machine"])
def test_the_kernels_word_is_given_where_a_counter_grew(
    tmp_path: Path, cgroup: str, events: str, limit: str, who: str
) -> None:
    put(tmp_path / "proc/self/cgroup", f"9:devices:/\n{cgroup}")
    put(tmp_path / "proc/vmstat", "pgfault 1\noom_kill 3\n")
    put(tmp_path / "proc/meminfo", "MemTotal:       25165824 kB\nMemFree: 1 kB\n")
    put(tmp_path / events, "low 0\noom_kill 0\n")
    put(tmp_path / limit, f"{8 << 30}\n")
    memory = KernelMemory(tmp_path)
    assert "nothing killed for lack of memory" in memory.why_killed(2)
    assert "24.0 GiB on the machine and 8.0 GiB in their control group" in memory.why_killed(2)
    changed = tmp_path / (events if who == "group" else "proc/vmstat")
    put(changed, "low 9\noom_kill 4\n")
    said = memory.why_killed(2)
    assert f"for lack of memory meanwhile ({changed}: oom_kill {0 if who == 'group' else 3} → 4)" in said


@pytest.mark.parametrize("files", [{}, {"proc/vmstat": "pgfault 1\n", "sys/fs/cgroup/job/memory.max": "max\n"}])
def test_sizes_are_given_where_the_kernel_does_not_tell(tmp_path: Path, files: dict[str, str]) -> None:
    put(tmp_path / "proc/self/cgroup", "0::/job\n")
    for path, text in files.items():
        put(tmp_path / path, text)
    said = KernelMemory(tmp_path).why_killed(1)
    assert said.startswith("whether for lack of memory the kernel does not tell here; a rank held up to ")
    assert said.endswith("there is 1, and they have an unknown size")


LAUNCHER = """
import os, sys
from pathlib import Path
from nemo_magic import launcher
from nemo_magic.config import TrainerConfig

def main(argv):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), int(argv[0]))
    return 0

trainer = TrainerConfig(num_nodes=1, devices=2, accelerator="cpu")
launcher._threads = lambda: 1  # libraries may have begun some: these ranks take no lock of theirs
sys.exit(launcher.launch(sys.argv[1:], trainer, fork=launcher.Fork(lambda: None, main), note=Path("killed.txt")))
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_launcher_says_why_a_rank_was_killed_and_postmortem_repeats_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = [sys.executable, "-c", LAUNCHER, str(int(number))]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number, done.stderr
    said = done.stderr.strip().splitlines()[-1].removeprefix("nemo-magic: ")
    assert said.startswith(f"rank 1 was killed by {number.name}, and the others were ended")
    assert ("a rank held up to" in said) is (number == signal.SIGKILL)
    assert list(report(tmp_path)) == [f"culprit: {said}"]


@pytest.mark.parametrize(
    "line",
    ["slurmstepd: error: Detected 1 oom_kill event in StepId=4.0. Some of the step tasks have been OOM Killed.",
     "slurmstepd: error: Detected 2 oom-kill event(s) in StepId=7.batch cgroup.",
     "srun: error: node7: task 1: Out Of Memory"],
)  # fmt: skip
def test_slurms_word_of_a_lack_of_memory_is_repeated(tmp_path: Path, line: str) -> None:
    put(tmp_path / "logs/4.0/srun.log", f"hello\n{line}\nsrun: error: node7: task 1: Killed\n{line}\n")
    lines = list(report(tmp_path))
    assert lines.count(f"out of memory, says Slurm: {line}") == 1
    assert lines[-1].startswith("culprit: ") or "ended first" in lines[-1]
