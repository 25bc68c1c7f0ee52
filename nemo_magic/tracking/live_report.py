"""Writes ``report.html`` while the run goes on: at validations, in a small share of the run's time.

In the sandbox, where no model has to be asked, it analyses the attacks as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nemo_magic.analysis.analyse import Analyst
from nemo_magic.config.analysis import AnalysisConfig, EmbeddingConfig
from nemo_magic.report.conversations import sandbox_of
from nemo_magic.report.records import ATTACKS_FILE, REPORT_FILE
from nemo_magic.report.run_folder import RunFolder

TIME_SHARE = 0.02
"""Share of the run's time: after a report that took t seconds the next one waits t / TIME_SHARE seconds."""


class LiveReport:
    """Runs on rank 0. Each report reads only the rows since the last one. An error ends no run: it is logged once.

    Args:
        run_dir: the run's folder.
        log: prints a line for the user.
        clock: seconds.
        analysis: how attacks are analysed; None: they are not.
        write_media: called with the run at each report.
        page: write ``report.html`` itself.
    """

    def __init__(
        self,
        run_dir: Path,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        analysis: AnalysisConfig | None = None,
        write_media: Callable[[RunFolder], None] | None = None,
        page: bool = True,
    ) -> None:
        self._run_dir = run_dir
        self._log = log
        self._clock = clock
        self._analysis = analysis
        self._write_media = write_media
        self._page = page
        self._run: RunFolder | None = None
        self._analyst: Analyst | None = None
        self._next_time = clock()
        self._failed = set[str]()

    def write(self, last: bool = False) -> None:
        """Write the report if it is time for one, or if it is the ``last``."""
        began = self._clock()
        if began < self._next_time and not last:
            return
        if self._attempt(REPORT_FILE, self._refresh):
            self._attempt(ATTACKS_FILE, self._analyse)
            self._attempt(REPORT_FILE, self._write_page)
            self._attempt("what else is shown", self._publish_media)
        ended = self._clock()
        self._next_time = ended + (ended - began) / TIME_SHARE

    def _attempt(self, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # whatever it is, the run is worth more than its report
            if what not in self._failed:
                self._log(f"{what} is not written: {type(error).__name__}: {error}")
            self._failed.add(what)
            return False
        return True

    def _refresh(self) -> None:
        if self._run is None:
            self._run = RunFolder(self._run_dir)
        else:
            self._run.refresh()

    def _write_page(self) -> None:
        if self._page and self._run is not None:
            from nemo_magic.report.page import write  # imports Jinja2 and plotly.js

            write([self._run], self._run_dir / REPORT_FILE)

    def _publish_media(self) -> None:
        if self._write_media is not None and self._run is not None:
            self._write_media(self._run)

    def _analyse(self) -> None:
        if self._analysis is None or self._run is None or sandbox_of(self._run.config) is None:
            return
        if self._analyst is None:
            # A run does not wait for a server that it does not need.
            config = replace(self._analysis, embedding=EmbeddingConfig())
            self._analyst = Analyst(self._run.config, config, None, self._log)
        self._analyst.write(self._run)
