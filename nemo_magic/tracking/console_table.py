"""The console output of a run: a live table, or one plain line a step where the terminal cannot redraw.

The terminal is redrawn only when a step ends: no thread, and nothing to pay while the GPUs work.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nemo_magic.formatting import MISSING, percent
from nemo_magic.report.records import StepRecord

Column = tuple[str, str, str]
"""Metric, heading, and the style that ``format_value`` writes it in."""

# Metrics without their prefix: both tables, the plain line and the summary share them.
GAME_COLUMNS: tuple[Column, ...] = (
    ("asr", "ASR", "percent"),
    ("over_refusal", "over-refusal", "percent"),
    ("useful", "useful", "percent"),
    ("intent_preserved", "intent", "percent"),
    ("format_ok", "format", "percent"),
    ("reward_attacker", "reward A", "signed"),
    ("reward_defender", "reward D", "signed"),
)
_WORK_COLUMNS: tuple[Column, ...] = (
    ("train_optim/loss", "loss", "number"),
    ("val_optim/loss", "held-out loss", "number"),
    ("timers/step", "s/step", "seconds"),
    ("throughput/tokens_per_second", "tokens/s", "whole"),
)
_DROP_FIRST = ("loss", "format", "intent", "s/step", "reward A", "tokens/s")
_ROLE_STYLE = {"attacker": "dark_orange", "defender": "dodger_blue1"}


SFT_LINE_EVERY = 50
"""A plain log shows one supervised step in this many; the JSONL has them all."""


class ConsoleTable:
    """Prints records as they come: the last ``rows`` steps, and the first and the latest validation.

    ``total_steps``: steps the run is planned for. ``console``: where to print, stdout by default. ``live``: redraw in
    place; None: where the console can.
    """

    def __init__(
        self,
        title: str,
        total_steps: int | None = None,
        rows: int = 10,
        console: Console | None = None,
        live: bool | None = None,
    ) -> None:
        self.title = title
        self.total_steps = total_steps
        self.console = console or Console()
        self._recent: deque[StepRecord] = deque(maxlen=rows)
        self._validations: list[StepRecord] = []  # the first and the latest
        self._live: Live | None = None
        if can_redraw(self.console) if live is None else live:
            # No record yet, nothing to draw: the display starts with the first one.
            self._live = Live(console=self.console, auto_refresh=False, transient=False)

    def write(self, record: StepRecord) -> None:
        """Show a step."""
        self._recent.append(record)
        if record.is_validation:
            self._validations = [*self._validations[:1], record]
        if self._live is None:
            if record.phase == "sft" and record.step % SFT_LINE_EVERY and record.step != self.total_steps:
                return
            self.console.print(plain_line(record, self.total_steps), soft_wrap=True, highlight=False, markup=False)
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(self.render(), refresh=True)

    def note(self, text: str) -> None:
        """Print a line of text above the table."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Give the terminal back. Harmless twice."""
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def render(self) -> RenderableType:
        """The whole display of the records so far."""
        if not self._recent:
            return Text("no step yet")
        latest = self._recent[-1]
        parts: list[RenderableType] = [_headline(latest, self.total_steps), self._steps_table()]
        if self._validations:
            parts.append(self._validation_table())
        parts.extend(Text(line, style="dim") for line in detail_lines(latest.metrics))
        return Panel(Group(*parts), title=self.title, title_align="left", border_style="dim")

    def _steps_table(self) -> Table:
        columns = [*_game_columns("train_rollouts/"), *_WORK_COLUMNS]
        return _table(("step", "learns"), columns, self._recent, self._width)

    def _validation_table(self) -> Table:
        return _table(("held out, step",), _game_columns("val_rollouts/"), self._validations, self._width)

    @property
    def _width(self) -> int:
        """Characters within the panel's border and padding."""
        return self.console.width - 4


def can_redraw(console: Console) -> bool:
    """Whether a display that is redrawn in place makes sense: a real terminal, and no CI log behind it."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


def plain_line(record: StepRecord, total_steps: int | None = None) -> str:
    """One step on one line, for logs: the metrics that the record has."""
    total = "" if total_steps is None else f"/{total_steps}"
    parts = [f"step {record.step}{total}", _phase(record)]
    parts += _format_metrics(record.metrics, _game_columns("train_rollouts/"))
    parts += _format_metrics(record.metrics, _WORK_COLUMNS)
    held_out = _format_metrics(record.metrics, _game_columns("val_rollouts/"))
    if held_out:
        parts.append("held out: " + ", ".join(held_out))
    return " | ".join(parts)


def detail_lines(metrics: Mapping[str, float]) -> list[str]:
    """The metrics that have no column: a line each for reward parts, optimisation and timings, where there are any."""
    rewards = _with_prefix("train_rollouts/reward_", metrics)
    parts = {name: value for name, value in sorted(rewards.items()) if "_" in name}  # the rest are whole rewards
    optim = _with_prefix("train_optim/", metrics)
    times = {name: seconds for name, seconds in _with_prefix("timers/", metrics).items() if name != "step"}
    lines = {
        "reward parts": [f"{name.replace('_', ' ')} {value:+.2f}" for name, value in parts.items()],
        "update": [f"{name.replace('_', ' ')} {value:.3g}" for name, value in optim.items()],
        "seconds": [f"{name.replace('_', ' ')} {value:.2f}" for name, value in times.items()],
    }
    return [f"{heading}: " + " · ".join(figures) for heading, figures in lines.items() if figures]


def format_value(value: float | None, style: str) -> str:
    """A metric as a cell; ``MISSING`` for None and NaN.

    ``style``: ``percent``, ``signed``, ``number``, ``seconds`` or ``whole``.
    """
    if value is None or math.isnan(value):
        return MISSING
    return {
        "percent": percent(value, "%"),
        "signed": f"{value:+.2f}",
        "seconds": f"{value:.2f}",
        "number": f"{value:.4f}",
        "whole": f"{value:,.0f}",
    }[style]


def _headline(record: StepRecord, total_steps: int | None) -> Text:
    total = "" if total_steps is None else f" of {total_steps}"
    text = Text(f"step {record.step}{total}", style="bold")
    return text.append("   ").append(_phase(record), style=_ROLE_STYLE.get(str(record.learner), ""))


def _phase(record: StepRecord) -> str:
    learner = f", {record.learner} learns" if record.learner is not None else ""
    return f"phase {record.phase_index} ({record.phase}{learner})"


def _role(learner: str | None) -> Text:
    return Text(MISSING if learner is None else str(learner), style=_ROLE_STYLE.get(str(learner), ""))


def _with_prefix(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _game_columns(prefix: str) -> list[Column]:
    return [(prefix + name, heading, style) for name, heading, style in GAME_COLUMNS]


def _format_metrics(metrics: Mapping[str, float], columns: Iterable[Column]) -> list[str]:
    return [f"{heading} {format_value(metrics[name], style)}" for name, heading, style in columns if name in metrics]


def _table(first: tuple[str, ...], columns: Iterable[Column], records: Iterable[StepRecord], width: int) -> Table:
    """Records as rows: the step, the learner if ``first`` has a second heading, then ``columns``.

    A column that no record has is left out, and so is a record that has no column. Where the table is wider than
    ``width`` characters, whole columns are dropped in the order of ``_DROP_FIRST``.
    """
    records = list(records)
    columns = [column for column in columns if any(column[0] in record.metrics for record in records)]
    ruler = Console(width=1000, file=io.StringIO())
    for heading in ("", *_DROP_FIRST):
        columns = [column for column in columns if column[1] != heading]
        table = _build_table(first, columns, records)
        if ruler.measure(table).maximum <= width:
            break
    return table


def _build_table(first: tuple[str, ...], columns: Sequence[Column], records: Sequence[StepRecord]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate((*first, *(heading for _, heading, _ in columns))):
        table.add_column(heading, justify="left" if number < len(first) else "right", vertical="bottom")
    for record in records:
        cells = [format_value(record.metrics.get(name), style) for name, _, style in columns]
        if set(cells) - {MISSING}:
            table.add_row(str(record.step), *([_role(record.learner)] if len(first) > 1 else []), *cells)
    return table
