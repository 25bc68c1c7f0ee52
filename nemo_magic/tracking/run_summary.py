"""The summary at a run's end: held-out metrics at start and end, the cross-play matrix, the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_magic.formatting import percent
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.report.records import (
    ALARMS_FILE,
    CROSSPLAY_FILE,
    GAME_METRICS,
    METRICS_FILE,
    PICTURE_FILE,
    REPORT_FILE,
    SAMPLES_DIR,
    STRATEGIES_FILE,
    StepRecord,
    read_records,
)
from nemo_magic.tracking.console_table import GAME_COLUMNS, format_value

_PREFIX = "val_rollouts/"
_STYLES = {name: style for name, _, style in GAME_COLUMNS} | {"refusal_harmful": "percent"}
_FILES = (
    (REPORT_FILE, "everything on one page, for a browser"),
    (PICTURE_FILE, "the picture of it"),
    (METRICS_FILE, "every figure of every step"),
    (CROSSPLAY_FILE, "attackers × defenders"),
    (ALARMS_FILE, "what the alarms said"),
    (STRATEGIES_FILE, "first and last defender under every strategy"),
    (SAMPLES_DIR, "conversations, step by step"),
    ("tensorboard", "tensorboard --logdir"),
    ("wandb", "wandb sync"),
    ("snapshots", "weights at the end of each phase"),
)


def print_summary(run_dir: str | Path, console: Console | None = None) -> None:
    """Print the summary of a run; parts whose files are not there are left out.

    Raises:
        FileNotFoundError: there is no metrics file.
    """
    folder = Path(run_dir)
    console = console or Console()
    records = read_records(folder / METRICS_FILE)
    validations = [record for record in records if record.is_validation]
    console.rule(f"[bold]{folder.name}[/bold]", align="left")
    if validations:
        console.print(_start_and_end(validations[0], validations[-1]))
    elif records:
        console.print(f"{records[-1].step} steps, none of them validated")
    if (folder / CROSSPLAY_FILE).exists():
        crossplay = CrossPlay.load(folder / CROSSPLAY_FILE)
        console.print(crossplay_table(crossplay))
        for line in crossplay_findings(crossplay):
            console.print(Text(line))
        console.print()
    if (folder / STRATEGIES_FILE).exists():
        sweep = json.loads((folder / STRATEGIES_FILE).read_text(encoding="utf-8"))
        for line in sweep_findings(sweep):
            console.print(Text(line))
        console.print()
    files = [(name, meaning) for name, meaning in _FILES if (folder / name).exists()]
    if files:
        console.print(_files_table(folder, files))


def crossplay_table(crossplay: CrossPlay) -> Table:
    """The matrix as a rich table, ASR in percent; each attacker's worst opponent, its lowest value, is bold."""
    seeds = f" ({crossplay.num_seeds} seeds a cell)" if crossplay.num_seeds else ""
    table = Table(title=f"Cross-play: ASR %{seeds}", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("attacker ╲ defender", no_wrap=True)
    for defender in crossplay.defenders:
        table.add_column(defender, justify="right")
    for attacker, row in zip(crossplay.attackers, crossplay.asr, strict=True):
        table.add_row(attacker, *(_cell(value, value == min(row)) for value in row))
    benign = crossplay.benign_rows()
    if benign:
        table.add_section()
        for name, row in benign:
            table.add_row(Text(name, style="dim"), *(Text(percent(value), style="dim") for value in row))
    return table


def crossplay_findings(crossplay: CrossPlay) -> list[str]:
    """The matrix in sentences: attackers' progress, the last defender, the best-response gap."""
    lines = []
    attackers, defenders = crossplay.attackers, crossplay.defenders
    first = 1 if attackers[0] == NO_REWRITE else 0
    if len(attackers) > first + 1:
        gain = 100 * crossplay.gain_over_first_attacker(first)
        lines.append(f"Best later attacker against {defenders[0]}: {gain:+.1f} points over {attackers[first]}.")
    if len(defenders) > 1:
        best = "the best" if crossplay.last_defender_best() else "not the best"
        tied = crossplay.last_defender_best() and any(row[-1] in row[:-1] for row in crossplay.asr)
        lines.append(
            f"{defenders[-1]} is {best} column for every attacker{' (ties count)' if tied else ''}; "
            f"its worst case here is {percent(crossplay.worst_case())} %."
        )
    gap = crossplay.best_response_gap()
    lines.append(
        f"Best-response gap of {attackers[-1]} and {defenders[-1]}: {percent(gap.total)} points "
        f"(attacker could gain {percent(gap.attacker)}, defender {percent(gap.defender)})."
    )
    return lines


def sweep_findings(sweep: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The strategy sweep in sentences: ``{"start" | "end": {"worst", "mean", "asr": {strategy: ASR}}}``."""
    lines = []
    for when, defender in (("start", "First"), ("end", "Last")):
        asr: Mapping[str, float] = sweep[when]["asr"]
        worst = max(asr, key=lambda name: asr[name])
        which = f" ({worst})" if asr[worst] > 0 else ""
        lines.append(
            f"{defender} defender under each of {len(asr)} strategies: worst {percent(asr[worst])} %{which}, "
            f"mean {percent(sweep[when]['mean'])} %."
        )
    return lines


def _start_and_end(first: StepRecord, last: StepRecord) -> Table:
    table = Table(title="Held-out seeds", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("", no_wrap=True)
    for heading in (f"step {first.step}", f"step {last.step}", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, label in GAME_METRICS.items():
        start, end = (record.metrics.get(_PREFIX + name) for record in (first, last))
        if start is None and end is None:
            continue
        style = _STYLES[name]
        change = "" if start is None or end is None else f"{100 * (end - start):+.1f}"
        table.add_row(label, format_value(start, style), format_value(end, style), change)
    return table


def _files_table(folder: Path, files: Sequence[tuple[str, str]]) -> Table:
    table = Table(title="Files", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", show_header=False)
    table.add_column(no_wrap=True, overflow="fold")
    table.add_column(style="dim")
    for name, meaning in files:
        table.add_row(str(folder / name), meaning)
    return table


def _cell(value: float, lowest: bool) -> Text:
    return Text(percent(value), style="bold" if lowest else "")
