"""What a task costs the process that does it."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from typing import Any


class Measure:
    """Seconds and the highest memory of this process from here to ``result``."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def result(self) -> dict[str, Any]:
        """``seconds``, ``cpu_seconds`` and ``peak_gib``."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 2**20
        return {"seconds": wall, "cpu_seconds": cpu, "peak_gib": peak}
