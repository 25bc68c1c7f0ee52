"""The metric logger of a run: it passes each step to console table, JSONL, samples, TensorBoard, wandb and report.

What cannot be written is said, and ends nothing: only a checkpoint that cannot be written ends a run. Only the main
rank writes; on every other rank all methods do nothing, so the loop needs no `if rank == 0`. Logging never communicates
between ranks: callers reduce first (`Ratios.merged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from typing_extensions import Self

from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.fsync_io import private_folder
from nemo_magic.game.alarms import AlarmEvent
from nemo_magic.game.metrics import Ratios, Scored, rollout_metrics
from nemo_magic.report.media import collect_media
from nemo_magic.report.records import SAMPLES_DIR, StepRecord
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.runtime.timers import Timers
from nemo_magic.tracking.console_table import ConsoleTable
from nemo_magic.tracking.live_report import LiveReport
from nemo_magic.tracking.sinks import AlarmWriter, JsonlSink, MediaSink, SampleWriter, Sink, TensorBoardSink, WandbSink

__all__ = ["ExpManagerSettings", "MetricLogger", "Ratios", "Scored", "StepRecord", "Timers", "rollout_metrics"]


class ExpManagerSettings(Protocol):
    """The keys of `exp_manager` that the metric logger reads."""

    @property
    def explicit_log_dir(self) -> str:
        """The run's folder."""

    @property
    def create_wandb_logger(self) -> bool:
        """Log to wandb."""

    @property
    def wandb_logger_kwargs(self) -> Any:
        """Keyword arguments of ``wandb.init``: a mapping, a dataclass or None."""

    @property
    def create_tensorboard_logger(self) -> bool:
        """Log to TensorBoard."""

    @property
    def create_report(self) -> bool:
        """Write ``report.html`` while the run goes on."""

    @property
    def num_logged_samples(self) -> int:
        """Conversations of a step that are saved."""

    @property
    def log_texts(self) -> bool:
        """Show the texts of conversations in wandb and TensorBoard."""


class MetricLogger:
    """Writes what training measures. Use it as a context manager, or call `close`.

    Args:
        settings: the run's `exp_manager` configuration.
        is_main: whether this rank writes. Elsewhere every method does nothing and no file is touched.
        resume_step: the step a resumed run continues after; later rows and samples of the interrupted run are
            removed. None for a new run, whose folder holds none.
        total_steps: steps the run is planned for, for the table.
        title: the run's name, for the table.
        config: the resolved configuration, passed on to wandb.
        analysis: how attacks are analysed; None where there are none.
    """

    def __init__(
        self,
        settings: ExpManagerSettings,
        *,
        is_main: bool,
        resume_step: int | None = None,
        total_steps: int | None = None,
        title: str = "",
        config: Mapping[str, Any] | None = None,
        analysis: AnalysisConfig | None = None,
    ) -> None:
        self.run_dir = Path(settings.explicit_log_dir)
        self._is_main = is_main
        self._failed = set[str]()
        self._sinks: list[Sink] = []
        self._samples: SampleWriter | None = None
        self._alarms: AlarmWriter | None = None
        self._report: LiveReport | None = None
        self._table: ConsoleTable | None = None
        if not is_main:
            return
        private_folder(self.run_dir)
        self._sinks.append(JsonlSink(self.run_dir, self.note, resume_step))
        if settings.create_tensorboard_logger:
            self._begin("TensorBoard", lambda: TensorBoardSink(self.run_dir, resume_step))
        if settings.create_wandb_logger:
            kwargs = _as_mapping(settings.wandb_logger_kwargs)
            self._begin("wandb", lambda: WandbSink(self.run_dir, kwargs, resume_step, config))
        self._alarms = AlarmWriter(self.run_dir, self.note, resume_step)
        with self._aloud(SAMPLES_DIR, OSError):
            self._samples = SampleWriter(self.run_dir, settings.num_logged_samples, resume_step)
        self._texts = settings.log_texts
        self._report = LiveReport(
            self.run_dir, self.note, analysis=analysis, write_media=self._write_media, page=settings.create_report
        )
        # Last: until then an error should print on a plain screen.
        self._table = ConsoleTable(title=title or self.run_dir.name, total_steps=total_steps)
        self._sinks.append(self._table)

    def record(self, record: StepRecord, samples: Sequence[Scored] = (), alarms: Sequence[AlarmEvent] = ()) -> None:
        """Write a step: its metrics, a sample of its conversations, and the alarms that were raised or ended."""
        for sink in list(self._sinks):
            # A library may raise anything, and its writer may be of no use any more.
            with self._aloud(type(sink).__name__, Exception, lambda sink=sink: self._sinks.remove(sink)):  # type: ignore[misc]
                sink.write(record)
        if self._samples is not None:
            with self._aloud(SAMPLES_DIR, OSError):
                self._samples.write(record.step, samples)
        if self._alarms is not None:
            self._alarms.write(alarms)
        for event in alarms:
            self.note(str(event))
        if self._report is not None and record.is_validation:
            self._report.write()

    def note(self, text: str) -> None:
        """Print a line that is no metric: a checkpoint was saved, a judge went away."""
        if self._table is not None:
            self._table.note(text)
        elif self._is_main:
            print(text, flush=True)

    def _begin(self, name: str, build: Callable[[], Sink]) -> None:
        with self._aloud(name, OSError):
            self._sinks.append(build())

    @contextmanager
    def _aloud(self, what: str, errors: type[Exception], then: Callable[[], None] = lambda: None) -> Iterator[None]:
        """An error within the context is said, once for each ``what``, and ends nothing."""
        try:
            yield
        except errors as error:
            if what not in self._failed:
                self.note(f"{what} is not written: {type(error).__name__}: {error}")
            self._failed.add(what)
            then()

    def write_final_report(self) -> None:
        """Give the terminal back, then write the last report and the last media. Call it after the final evaluation."""
        if self._table is not None:
            self._table.close()
        if self._report is not None:
            self._report.write(last=True)

    def _write_media(self, run: RunFolder) -> None:
        sinks = [sink for sink in self._sinks if isinstance(sink, MediaSink)]
        if sinks and run.last is not None:
            media = collect_media(run, self._texts)
            for sink in sinks:
                sink.write_media(run.last.step, media)

    def close(self) -> None:
        """Close all sinks, the console table first, so that the terminal is given back. Harmless twice."""
        sinks, self._sinks = self._sinks, []
        if self._alarms is not None:
            self._alarms.close()
        self._samples = self._alarms = self._report = self._table = None
        for sink in reversed(sinks):
            with self._aloud(type(sink).__name__, Exception):
                sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
