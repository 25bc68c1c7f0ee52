"""``report.html`` while the run goes on: written at validations, in a small share of the time, never in the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from nemo_magic.report.records import REPORT_FILE
from nemo_magic.report.run_folder import RunFolder

SHARE = 0.02
"""Of the run's time: after a report that took t seconds there is none for t / SHARE seconds."""


class LiveReport:
    """Rank 0's. Every writing reads only the rows since the last one.

    ``say``: is told once what keeps a report from being written, which ends no run.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir = run_dir
        self._say = say
        self._clock = clock
        self._run: RunFolder | None = None
        self._next = clock()
        self._failed = False

    def write(self) -> None:
        """Write the report, unless it is too early."""
        began = self._clock()
        if began < self._next:
            return
        try:
            from nemo_magic.report.page import write  # Jinja2 and plotly.js are wanted here only

            if self._run is None:
                self._run = RunFolder(self._run_dir)
            else:
                self._run.refresh()
            write([self._run], self._run_dir / REPORT_FILE)
        except Exception as error:  # whatever it is, the run is worth more than a picture of it
            if not self._failed:
                self._say(f"{REPORT_FILE} is not written: {type(error).__name__}: {error}")
            self._failed = True
        ended = self._clock()
        self._next = ended + (ended - began) / SHARE
