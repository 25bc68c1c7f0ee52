"""Sinks of the metric logger: JSONL files, TensorBoard, wandb."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nemo_magic.formatting import markdown_table
from nemo_magic.fsync_io import replace_durably
from nemo_magic.game.alarms import AlarmEvent
from nemo_magic.game.episode import Label, Turn, Verdict
from nemo_magic.game.metrics import Scored
from nemo_magic.report.media import Lines, Media, Points, Table
from nemo_magic.report.records import ALARMS_FILE, METRICS_FILE, SAMPLES_DIR, StepRecord


class Sink(Protocol):
    """Something records are written to."""

    def write(self, record: StepRecord) -> None:
        """Write a step."""

    def close(self) -> None:
        """Flush, and release what is held."""


@runtime_checkable
class MediaSink(Protocol):
    """A sink that also takes media: tables, lines, points and bars."""

    def write_media(self, step: int, media: Sequence[Media]) -> None:
        """Write the media of a step; ``Media.key`` names each."""


class LineFile:
    """JSON lines that are appended to a file, each whole or not at all.

    Lines that the file system does not take are kept, and written once it does. With ``resume_step`` set, rows of later
    steps (work that the resumed run does again) are removed first, and so are lines that are damaged.

    Args:
        note: prints a line for the user: what was dropped, what cannot be written, and when it could be.
    """

    def __init__(self, path: Path, note: Callable[[str], None], resume_step: int | None = None) -> None:
        self.path = path
        self._note = note
        self._waiting: list[bytes] = []
        self._failed = False
        try:
            if resume_step is not None and path.exists():
                dropped = keep_rows_up_to(path, resume_step)
                if dropped:
                    note(f"{path}: {dropped} damaged line{'s' * (dropped > 1)} dropped")
        except OSError as error:
            note(f"{path}: rows after step {resume_step} are not removed: {error}")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as JSON lines; all of them, or none where the file system refuses."""
        self._waiting += [f"{json.dumps(row, allow_nan=False)}\n".encode() for row in rows]
        if not self._waiting:
            return
        try:
            _append_whole(self.path, b"".join(self._waiting))
        except OSError as error:
            if not self._failed:
                self._note(f"{self.path} cannot be written: {error}. Its lines are kept until it can be")
            self._failed = True
            return
        if self._failed:
            self._note(f"{self.path} is written again, with the {len(self._waiting)} lines that were kept")
        self._waiting, self._failed = [], False

    def close(self) -> None:
        """Try once more to write what was kept, and say what is lost."""
        self.append(())
        if self._waiting:
            self._note(f"{self.path}: {len(self._waiting)} lines could not be written, and are lost")
            self._waiting = []


class JsonlSink:
    """``metrics.jsonl``: one JSON object per step, in the file as soon as it is written."""

    def __init__(self, run_dir: Path, note: Callable[[str], None], resume_step: int | None = None) -> None:
        self._lines = LineFile(run_dir / METRICS_FILE, note, resume_step)

    def write(self, record: StepRecord) -> None:
        """Write a step."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._lines.append([record.to_row(now)])

    def close(self) -> None:
        """Close the sink."""
        self._lines.close()


class AlarmWriter:
    """``alarms.jsonl``: a line for every alarm that was raised or ended. The file begins with the first."""

    def __init__(self, run_dir: Path, note: Callable[[str], None], resume_step: int | None = None) -> None:
        self._lines = LineFile(run_dir / ALARMS_FILE, note, resume_step)

    def write(self, events: Sequence[AlarmEvent]) -> None:
        """Append events, if there are any."""
        self._lines.append(event.to_row() for event in events)

    def close(self) -> None:
        """Write what is left."""
        self._lines.close()


class SampleWriter:
    """``samples/step_XXXX.jsonl``: up to ``count`` conversations of a step, with verdicts and rewards."""

    def __init__(self, run_dir: Path, count: int, resume_step: int | None = None) -> None:
        self.folder = run_dir / SAMPLES_DIR
        self.count = count
        if resume_step is not None and self.folder.exists():
            for path in self.folder.glob("step_*.jsonl"):
                match = re.fullmatch(r"step_(\d+)", path.stem)
                if match and int(match[1]) > resume_step:
                    path.unlink()

    def write(self, step: int, scored: Sequence[Scored]) -> None:
        """Save the step's samples; no file for no episodes or a count of 0."""
        samples = pick_samples(scored, self.count)
        if not samples:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(sample_row(step, one), ensure_ascii=False) + "\n" for one in samples]
        replace_durably(self.folder / f"step_{step:04d}.jsonl", "".join(lines))


class TensorBoardSink:
    """Every metric as a TensorBoard scalar, under ``tensorboard/``; tables as text."""

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second

        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def write(self, record: StepRecord) -> None:
        """Write a step."""
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def write_media(self, step: int, media: Sequence[Media]) -> None:
        """The tables among the media, as text below ``report/``."""
        for one in media:
            if isinstance(one, Table):
                self._writer.add_text(f"report/{one.key}", _markdown(one), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the sink."""
        self._writer.close()


class WandbSink:
    """Every metric to wandb; offline unless the keyword arguments say otherwise.

    An online run that resumes continues the same wandb run, whose id is kept in ``wandb_id.txt``. ``step`` is a metric
    of its own because wandb's counter cannot go back.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        kwargs: Mapping[str, Any],
        resume_step: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        import wandb  # slow to import, and optional

        settings: dict[str, Any] = {"mode": "offline"} | {k: v for k, v in kwargs.items() if v is not None}
        id_file = run_dir / "wandb_id.txt"
        if resume_step is not None and id_file.exists():
            settings.setdefault("id", id_file.read_text(encoding="utf-8").strip())
            if settings["mode"] == "online":
                settings.setdefault("resume", "allow")
        self._run = wandb.init(dir=str(run_dir), config=dict(config or {}), **settings)
        replace_durably(id_file, f"{self._run.id}\n")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, record: StepRecord) -> None:
        """Write a step."""
        row = {"step": record.step, "phase": record.phase, "phase_index": record.phase_index}
        self._run.log({**row, **record.metrics})

    def write_media(self, step: int, media: Sequence[Media]) -> None:
        """Media as wandb's own tables and charts, below ``report/``."""
        self._run.log({"step": step, **{f"report/{one.key}": _to_wandb(one) for one in media}})

    def close(self) -> None:
        """Close the sink."""
        self._run.finish()


def pick_samples(scored: Sequence[Scored], count: int) -> list[Scored]:
    """Up to ``count`` episodes, always the same for the same batch: as many seeds as possible, labels alternating."""
    ordered = sorted(scored, key=lambda one: (one.episode.sample, one.episode.group))
    by_label = [[one for one in ordered if one.episode.seed.label is label] for label in Label]
    alternating = [one for one in chain.from_iterable(zip_longest(*by_label)) if one is not None]
    return alternating[: max(count, 0)]


def sample_row(step: int, scored: Scored) -> dict[str, Any]:
    """One conversation as a JSON object, ids and log-probabilities left out, reasoning of the attacker included."""
    episode, verdict, rewards = scored
    return {
        "step": step,
        "group": episode.group,
        "sample": episode.sample,
        "seed": {"id": episode.seed.id, "text": episode.seed.text, "label": str(episode.seed.label)},
        "turns": [_turn_row(turn) for turn in episode.turns],
        "verdict": None if verdict is None else _verdict_row(verdict),
        "rewards": None
        if rewards is None
        else {str(role): {"total": sum(parts.values()), **parts} for role, parts in rewards.items()},
    }


def _turn_row(turn: Turn) -> dict[str, Any]:
    return {
        "attack": None if turn.attack is None else turn.attack.text,
        "format_ok": turn.format_ok,
        "rewrite": turn.rewrite,
        "response": None if turn.defence is None else turn.defence.text,
        "response_finished": None if turn.defence is None else turn.defence.finished,
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(verdict).items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else str(value) for name, value in fields.items()}


def _to_wandb(one: Media) -> Any:
    import wandb

    if isinstance(one, Table):
        return wandb.Table(columns=list(one.columns), data=[list(row) for row in one.rows])
    if isinstance(one, Lines):
        xs, ys = zip(*one.lines.values(), strict=True)
        return wandb.plot.line_series(xs, ys, keys=list(one.lines), title=one.title, xname=one.x)
    if isinstance(one, Points):
        table = wandb.Table(columns=[one.x, one.y], data=[list(point) for point in one.points])
        return wandb.plot.scatter(table, one.x, one.y, title=one.title)
    table = wandb.Table(columns=["name", one.value], data=[[name, value] for name, value in one.bars.items()])
    return wandb.plot.bar(table, "name", one.value, title=one.title)


def _markdown(table: Table) -> str:
    return markdown_table([[_cell(cell) for cell in row] for row in (table.columns, *table.rows)])


def _cell(value: str | float | None) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())


def keep_rows_up_to(path: Path, step: int) -> int:
    """Remove the rows of later steps, a last line that a kill cut short, and lines that are no rows (a disk's NULs, two
    halves of lines). Returns how many of the last kind there were."""
    *whole, _ = path.read_bytes().split(b"\n")
    kept, damaged = [], 0
    for line in whole:
        try:
            row = json.loads(line.decode("utf-8"))
            of = row["step"]
            if not isinstance(of, int) or isinstance(of, bool):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            damaged += 1
            continue
        if of <= step:
            kept.append(line.decode("utf-8") + "\n")
    replace_durably(path, "".join(kept))
    return damaged


def _append_whole(path: Path, data: bytes) -> None:
    """Append ``data`` to a file, or leave it as it was: half a line would damage the next one too."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[file.write(view) or 0 :]
        except OSError:
            with suppress(OSError):
                os.truncate(file.fileno(), size)
            raise
