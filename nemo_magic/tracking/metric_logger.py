"""The one place training reports to: live table, JSONL, sampled conversations, TensorBoard, wandb.

The loop builds a `StepRecord` and hands it over; what becomes of it is decided here. Only the main rank writes: on
every other rank the observer has nowhere to write to, so the loop needs no `if rank == 0`. Observing never
communicates between ranks; whoever calls reduces first (`Ratios.merged`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from typing_extensions import Self

from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.game.alarms import AlarmEvent
from nemo_magic.game.metrics import Ratios, Scored, rollout_metrics
from nemo_magic.report.media import media
from nemo_magic.report.records import (
    ALARMS_FILE,
    ATTACKS_DIR,
    CROSSPLAY_FILE,
    METRICS_FILE,
    PICTURE_FILE,
    REPORT_FILE,
    SAMPLES_DIR,
    StepRecord,
)
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.runtime.timers import Timers
from nemo_magic.tracking.console_table import ConsoleTable
from nemo_magic.tracking.live_report import LiveReport
from nemo_magic.tracking.sinks import AlarmWriter, JsonlSink, MediaSink, SampleWriter, Sink, TensorBoardSink, WandbSink

__all__ = ["ExpManagerSettings", "MetricLogger", "Ratios", "Scored", "StepRecord", "Timers", "rollout_metrics"]

_RUN_OUTPUTS = (
    METRICS_FILE,
    ALARMS_FILE,
    SAMPLES_DIR,
    "tensorboard",
    CROSSPLAY_FILE,
    PICTURE_FILE,
    REPORT_FILE,
    "snapshots",
    "checkpoints",
    "strategies.json",
    "cross-play",
    ATTACKS_DIR,
)


class ExpManagerSettings(Protocol):
    """What the observer reads of the `exp_manager` configuration."""

    @property
    def explicit_log_dir(self) -> str: ...
    @property
    def create_wandb_logger(self) -> bool: ...
    @property
    def wandb_logger_kwargs(self) -> Any: ...
    @property
    def create_tensorboard_logger(self) -> bool: ...
    @property
    def create_report(self) -> bool: ...
    @property
    def num_logged_samples(self) -> int: ...
    @property
    def log_texts(self) -> bool: ...


class MetricLogger:
    """Receives what training measures. Use as a context manager, or call `close`.

    Args:
        settings: the run's `exp_manager` configuration.
        is_main: whether this rank writes. Elsewhere every method does nothing and no file is touched.
        resume_step: the step a resumed run continues after; later rows and samples of the interrupted run are
            removed. None for a fresh run: outputs already in the folder are moved to `previous-NN/`.
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
        self._sinks: list[Sink] = []
        self._samples: SampleWriter | None = None
        self._alarms: AlarmWriter | None = None
        self._report: LiveReport | None = None
        self._table: ConsoleTable | None = None
        if not is_main:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            set_previous_run_aside(self.run_dir)
        self._sinks.append(JsonlSink(self.run_dir, resume_step))
        if settings.create_tensorboard_logger:
            self._sinks.append(TensorBoardSink(self.run_dir, resume_step))
        if settings.create_wandb_logger:
            kwargs = _as_mapping(settings.wandb_logger_kwargs)
            self._sinks.append(WandbSink(self.run_dir, kwargs, resume_step, config))
        self._alarms = AlarmWriter(self.run_dir, resume_step)
        self._samples = SampleWriter(self.run_dir, settings.num_logged_samples, resume_step)
        self._texts = settings.log_texts
        self._report = LiveReport(
            self.run_dir, self.note, analysis=analysis, show=self._show, page=settings.create_report
        )
        # Last: until then an error should print on a plain screen.
        self._table = ConsoleTable(title=title or self.run_dir.name, total_steps=total_steps)
        self._sinks.append(self._table)

    def record(self, record: StepRecord, samples: Sequence[Scored] = (), alarms: Sequence[AlarmEvent] = ()) -> None:
        """Take in one step's figures, of the episodes given a sample of the conversations, and what alarms said."""
        for sink in self._sinks:
            sink.write(record)
        if self._samples is not None:
            self._samples.write(record.step, samples)
        if self._alarms is not None:
            self._alarms.write(alarms)
        for event in alarms:
            self.note(str(event))
        if self._report is not None and any(name.startswith("val_rollouts/") for name in record.metrics):
            self._report.write()

    def note(self, text: str) -> None:
        """Tell the person watching something that is not a figure: a checkpoint saved, a judge that went away."""
        if self._table is not None:
            self._table.note(text)

    def conclude(self) -> None:
        """After what is measured at the end of a game: the last report, and the last exhibits for whoever draws them.

        The terminal is given back first."""
        if self._table is not None:
            self._table.close()
        if self._report is not None:
            self._report.write(last=True)

    def _show(self, run: RunFolder) -> None:
        showing = [sink for sink in self._sinks if isinstance(sink, MediaSink)]
        if showing and run.last is not None:
            found = media(run, self._texts)
            for sink in showing:
                sink.show(run.last.step, found)

    def close(self) -> None:
        """Flush and end everything, in reverse order, so that the terminal is given back first. Harmless twice."""
        sinks, self._sinks = self._sinks, []
        self._samples = self._alarms = self._report = self._table = None
        for sink in reversed(sinks):
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def set_previous_run_aside(run_dir: Path) -> Path | None:
    """Move an earlier run's outputs to the first free `previous-NN/`, and say where; None when there were none."""
    found = [run_dir / name for name in _RUN_OUTPUTS if (run_dir / name).exists()]
    if not found:
        return None
    number = 1
    while (aside := run_dir / f"previous-{number:02d}").exists():
        number += 1
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
