"""What a person watching sees: a table that grows with the run, or one plain line per step where it cannot.

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
"""Metric, heading, how its value is shown."""

# Without prefix: both tables, the plain line and the summary share them.
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
"""Supervised steps are many and alike: a plain log shows one line in this many. The JSONL has them all."""


class ConsoleTable:
    """Shows records as they come. ``console`` and ``live`` are for those who show it elsewhere than on stdout."""

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
        self._recent.append(record)
        if any(name.startswith("val_rollouts/") for name in record.metrics):
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
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def render(self) -> RenderableType:
        """The whole display for what was recorded so far."""
        if not self._recent:
            return Text("no step yet")
        latest = self._recent[-1]
        parts: list[RenderableType] = [_headline(latest, self.total_steps), self._steps_table()]
        if self._validations:
            parts.append(self._validation_table())
        parts.extend(Text(line, style="dim") for line in details(latest.metrics))
        return Panel(Group(*parts), title=self.title, title_align="left", border_style="dim")

    def _steps_table(self) -> Table:
        columns = [("train_rollouts/" + name, heading, style) for name, heading, style in GAME_COLUMNS]
        return _table(("step", "learns"), [*columns, *_WORK_COLUMNS], self._recent, self._room)

    def _validation_table(self) -> Table:
        columns = [("val_rollouts/" + name, heading, style) for name, heading, style in GAME_COLUMNS]
        return _table(("held out, step",), columns, self._validations, self._room)

    @property
    def _room(self) -> int:
        """Characters within the panel's border and padding."""
        return self.console.width - 4


def can_redraw(console: Console) -> bool:
    """Whether a display that is redrawn in place makes sense: a real terminal, and no CI log behind it."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


def plain_line(record: StepRecord, total_steps: int | None = None) -> str:
    """One step on one line, for logs. Only what was measured is said."""
    total = "" if total_steps is None else f"/{total_steps}"
    said = [f"step {record.step}{total}", _phase(record)]
    said += _named_figures(record.metrics, "train_rollouts/")
    said += [
        f"{heading} {show(record.metrics[n], style)}" for n, heading, style in _WORK_COLUMNS if n in record.metrics
    ]
    held_out = _named_figures(record.metrics, "val_rollouts/")
    if held_out:
        said.append("held out: " + ", ".join(held_out))
    return " | ".join(said)


def details(metrics: Mapping[str, float]) -> list[str]:
    """The figures that have no column: reward parts, optimisation, timings. One line each, empty ones left out."""
    rewards = _below("train_rollouts/reward_", metrics)
    parts = {name: value for name, value in sorted(rewards.items()) if "_" in name}  # the rest are whole rewards
    optim = _below("train_optim/", metrics)
    times = {name: seconds for name, seconds in _below("timers/", metrics).items() if name != "step"}
    lines = {
        "reward parts": [f"{name.replace('_', ' ')} {value:+.2f}" for name, value in parts.items()],
        "update": [f"{name.replace('_', ' ')} {value:.3g}" for name, value in optim.items()],
        "seconds": [f"{name.replace('_', ' ')} {value:.2f}" for name, value in times.items()],
    }
    return [f"{heading}: " + " · ".join(figures) for heading, figures in lines.items() if figures]


def show(value: float | None, style: str) -> str:
    """A figure as a cell: ``percent``, ``signed``, ``number``, ``seconds`` or ``whole``; a dash for what was not
    measured."""
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


def _below(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _named_figures(metrics: Mapping[str, float], prefix: str) -> list[str]:
    return [
        f"{heading} {show(metrics[prefix + name], style)}"
        for name, heading, style in GAME_COLUMNS
        if prefix + name in metrics
    ]


def _table(first: tuple[str, ...], columns: Iterable[Column], records: Iterable[StepRecord], room: int) -> Table:
    """Records as rows: the step, the learner if ``first`` has a second heading, then ``columns``.

    A column that no record has is left out, and so is a record that has no column. On a screen narrower than the
    table, ``room`` characters, whole columns go, least telling first, rather than the ends of all of them.
    """
    records = list(records)
    kept = [column for column in columns if any(column[0] in record.metrics for record in records)]
    ruler = Console(width=1000, file=io.StringIO())
    for heading in ("", *_DROP_FIRST):
        kept = [column for column in kept if column[1] != heading]
        table = _filled(first, kept, records)
        if ruler.measure(table).maximum <= room:
            break
    return table


def _filled(first: tuple[str, ...], columns: Sequence[Column], records: Sequence[StepRecord]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate((*first, *(heading for _, heading, _ in columns))):
        table.add_column(heading, justify="left" if number < len(first) else "right", vertical="bottom")
    for record in records:
        cells = [show(record.metrics.get(name), style) for name, _, style in columns]
        if set(cells) - {MISSING}:
            table.add_row(str(record.step), *([_role(record.learner)] if len(first) > 1 else []), *cells)
    return table
