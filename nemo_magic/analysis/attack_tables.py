"""The analysis of a run's attacks as tables on a console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_magic.formatting import MISSING, percent
from nemo_magic.report.records import ATTACK_TABLE_FILE

_STRATEGIES = 12


def print_attack_tables(analysis: Mapping[str, Any], console: Console) -> None:
    """Print what ``attacks.json`` has: a table by phase and a table of strategies."""
    console.print(f"{analysis['rule']} Attacks of a model: {analysis['attacks']:,}.")
    console.print(f"Labelled by: {analysis['labels'] or 'nobody'}.", markup=False)
    for problem, count in analysis["problems"]:
        console.print(f"  {count} × {problem}", markup=False)
    if (check := analysis["check"]) is not None:
        console.print(
            f"Of {check['rows']:,} rows of the pool it names {percent(check['exact'])} % as the pool does, and "
            f"{percent(check['unknown'])} % not at all; a hybrid's parts overlap by {percent(check['overlap'])} %."
        )
    pool = analysis["pool"]
    console.print(
        f"Novelty: {pool}" if isinstance(pool, str) else
        f"Novelty is against {pool['combinations']} combinations in {pool['rows']:,} rows of {pool['path']}"
        + (f", {pool['unreadable']:,} without one" if pool["unreadable"] else "") + ".",
        markup=False,
    )  # fmt: skip
    if not analysis["attacks"]:
        return
    figures = Table(title="Attacks by phase", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    columns = ("attacks", "hybrid", "new", "lost", "open", "BLEU", "seed", "cosine")
    for heading in ("", *columns):
        figures.add_column(heading, justify="right" if heading else "left")
    for phase in analysis["phases"]:
        figures.add_row(f"{phase['phase']} {phase['learner']}", *_cells(phase))
    figures.add_row("all", *_cells(analysis["whole"]))
    figures.caption = (
        "Percent: hybrid combine several strategies, new combine them as no row of the pool, lost their seed's intent, "
        "open: strategy unknown. Self-BLEU of different seeds, and of one seed; cosine of embeddings."
    )
    figures.caption_justify = "left"
    console.print(figures)
    table = Table(title="Strategies", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for heading in ("", "attacks", "share", "ASR", "lost", "steps", "in pool"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in analysis["strategies"][:_STRATEGIES]:
        in_pool = MISSING if row["in_pool"] is None else str(row["in_pool"])
        table.add_row(
            Text(row["strategy"]), str(row["attacks"]), percent(row["share"]), percent(row["asr"]),
            percent(row["intent_lost"]), f"{row['first_step']} to {row['last_step']}", in_pool,
        )  # fmt: skip
    if (left := len(analysis["strategies"]) - _STRATEGIES) > 0:
        table.caption = f"and {left} more in {ATTACK_TABLE_FILE}"
    console.print(table)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    shares = ("hybrid_share", "novel_share", "intent_lost", "unknown_share")
    alike = ("self_bleu", "self_bleu_same_seed", "similarity")
    numbers = [MISSING if figures[name] is None else f"{figures[name]:.3f}" for name in alike]
    return [str(figures["attacks"]), *(percent(figures[name]) for name in shares), *numbers]
