"""``report.html`` while the run goes on: written at validations, in a small share of the time, never in the way.

With it comes what is as cheap: in the sandbox, where no model has to be asked, the analysis of the attacks.
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

SHARE = 0.02
"""Of the run's time: after a report that took t seconds there is none for t / SHARE seconds."""


class LiveReport:
    """Rank 0's. Every writing reads only the rows since the last one.

    ``say``: is told once what keeps a report from being written, which ends no run. ``show``: is given what there is to
    be seen with each report. ``page``: write the page itself.
    """

    def __init__(
        self,
        run_dir: Path,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        analysis: AnalysisConfig | None = None,
        show: Callable[[RunFolder], None] | None = None,
        page: bool = True,
    ) -> None:
        self._run_dir = run_dir
        self._say = say
        self._clock = clock
        self._analysis = analysis
        self._show = show
        self._page = page
        self._run: RunFolder | None = None
        self._analyst: Analyst | None = None
        self._next = clock()
        self._failed = set[str]()

    def write(self, last: bool = False) -> None:
        """Write the report, unless it is too early; the ``last`` one never is."""
        began = self._clock()
        if began < self._next and not last:
            return
        if self._tried(REPORT_FILE, self._refresh):
            self._tried(ATTACKS_FILE, self._analyse)
            self._tried(REPORT_FILE, self._draw)
            self._tried("what else is shown", self._exhibit)
        ended = self._clock()
        self._next = ended + (ended - began) / SHARE

    def _tried(self, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # whatever it is, the run is worth more than a picture of it
            if what not in self._failed:
                self._say(f"{what} is not written: {type(error).__name__}: {error}")
            self._failed.add(what)
            return False
        return True

    def _refresh(self) -> None:
        if self._run is None:
            self._run = RunFolder(self._run_dir)
        else:
            self._run.refresh()

    def _draw(self) -> None:
        if self._page and self._run is not None:
            from nemo_magic.report.page import write  # Jinja2 and plotly.js are wanted here only

            write([self._run], self._run_dir / REPORT_FILE)

    def _exhibit(self) -> None:
        if self._show is not None and self._run is not None:
            self._show(self._run)

    def _analyse(self) -> None:
        if self._analysis is None or self._run is None or sandbox_of(self._run.config) is None:
            return
        if self._analyst is None:
            # A run does not wait for a server that it does not need.
            settings = replace(self._analysis, embedding=EmbeddingConfig())
            self._analyst = Analyst(self._run.config, settings, None, self._say)
        self._analyst.write(self._run)
