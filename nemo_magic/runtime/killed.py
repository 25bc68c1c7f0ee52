"""Why a process was killed: the kernel's word where it can be read, sizes where it cannot. Imports neither torch nor
NeMo.

Without memory to give, Linux kills a process by SIGKILL, which says nothing, and counts it: for the machine in
/proc/vmstat, and for a control group (a container, a Slurm job) in a file of its own.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

NOTE = "killed.txt"
"""In a run's folder: which rank was killed, and why; of the newest attempt only."""

_GIB = float(1 << 30)
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_TOTAL = re.compile(r"^MemTotal:\s+(\d+) kB$", re.MULTILINE)


class KernelMemory:
    """What the kernel counted of processes killed for lack of memory when this was made; ``root``: of /proc and
    /sys."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = dict(self._counts())

    def why_killed(self, ranks: int) -> str:
        """Why one of ``ranks`` child processes, all of which were waited for, was killed by SIGKILL, in words."""
        grown = [
            f"{path}: oom_kill {self._before[path]} → {count}"
            for path, count in self._counts()
            if count > self._before.get(path, count)
        ]
        if grown:
            word = f"the kernel killed for lack of memory meanwhile ({'; '.join(grown)})"
        elif self._before:
            read = ", ".join(self._before)
            word = f"the kernel counted nothing killed for lack of memory ({read}), so somebody else did"
        else:
            word = "whether for lack of memory the kernel does not tell here"
        return f"{word}; {self._sizes(ranks)}"

    def _sizes(self, ranks: int) -> str:
        held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / _GIB
        there = " and ".join(self._limits()) or "an unknown size"
        return f"a rank held up to {held:.1f} GiB, there {'are' if ranks > 1 else 'is'} {ranks}, and they have {there}"

    def _limits(self) -> Iterator[str]:
        if (total := _TOTAL.search(_read(self._root / "proc/meminfo"))) is not None:
            yield f"{int(total[1]) * 1024 / _GIB:.1f} GiB on the machine"
        for folder, name in self._groups():
            limit = _read(folder / ("memory.max" if name == "memory.events" else "memory.limit_in_bytes")).strip()
            # Without a limit it is a word, or a number that no machine has.
            if limit.isdecimal() and int(limit) < 1 << 60:
                yield f"{int(limit) / _GIB:.1f} GiB in their control group"

    def _counts(self) -> Iterator[tuple[str, int]]:
        for path in (self._root / "proc/vmstat", *(folder / name for folder, name in self._groups())):
            if (found := _COUNT.search(_read(path))) is not None:
                yield str(path), int(found[1])

    def _groups(self) -> Iterator[tuple[Path, str]]:
        """This process's control group for memory: its folder, and the file that counts."""
        for line in _read(self._root / "proc/self/cgroup").splitlines():
            number, _, rest = line.partition(":")
            kinds, _, path = rest.partition(":")
            if number == "0" and not kinds:
                yield self._root / "sys/fs/cgroup" / path.lstrip("/"), "memory.events"
            elif "memory" in kinds.split(","):
                yield self._root / "sys/fs/cgroup/memory" / path.lstrip("/"), "memory.oom_control"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
