"""The report of a league as a table and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text


def print_league_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a ``league_report``: the ASR matrix with ratings, and ``sentences``."""
    console.print(Group(_matrix(report), *(Text(line) for line in sentences(report))))


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """The figures of a ``league_report``, one line each; shares in percent, intervals in brackets."""
    defenders = report["defenders"]
    for name, title in (("asr", "ASR"), ("payoff", "Payoff")):
        game, scale = report[name], 100 if name == "asr" else 1
        unit = " %" if name == "asr" else ""
        last = game["last_defender"]
        yield ""
        yield f"{title}: the game is worth {_with_interval(game['value'], scale)}{unit} to the attacker in equilibrium:"
        yield f"  attackers {_mixture(game['equilibrium']['attackers'])}"
        yield f"  defenders {_mixture(game['equilibrium']['defenders'])}"
        yield (
            f"  {defenders[-1]}, the last defender: at worst {_with_interval(last['worst'], scale)}{unit} "
            f"({last['worst_attacker']}), {_with_interval(last['exploitability'], scale)} above the game's value"
        )
        gap = game["last_pair_gap"]
        yield (
            f"  the last pair: the attacker could gain {scale * gap['attacker']:.2f}, "
            f"the defender {scale * gap['defender']:.2f}"
        )
    yield ""
    for one in report["forgotten"]:
        yield (
            f"Forgotten: {one['attacker']} wins {100 * one['now']:.1f} % against {defenders[-1]}; {one['held_by']} had "
            f"held it to {100 * one['before']:.1f} % (difference at least {100 * one['low']:.1f})."
        )
    if not report["forgotten"]:
        yield f"No old attacker does better against {defenders[-1]} than against a defender before it."
    yield (
        f"A ladder leaves {100 * report['ratings']['misfit']:.1f} points of a cell unexplained (root mean square); "
        "the more, the less the ratings say."
    )
    undecided = {name: games["undecided"] for name, games in report["games"].items() if games["undecided"]}
    if undecided:
        yield f"No verdict, and so no part in the figures, against {defenders[-1]}: {undecided}"


def _matrix(report: Mapping[str, Any]) -> Table:
    game, strengths = report["asr"], report["ratings"]
    confidence = 100 * report["settings"]["confidence"]
    table = Table(
        title=f"Cross-play: ASR %, {confidence:g} % interval over seeds; Elo",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    table.add_column("attacker ╲ defender", no_wrap=True)
    for name in report["defenders"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Elo", justify="right")
    for i, attacker in enumerate(report["attackers"]):
        cells = [
            f"{100 * game['matrix'][i][j]:.0f} [{100 * game['low'][i][j]:.0f}–{100 * game['high'][i][j]:.0f}]"
            for j in range(len(report["defenders"]))
        ]
        table.add_row(attacker, *cells, f"{strengths['attackers'][attacker]:.0f}")
    table.add_section()
    table.add_row("Elo", *(f"{strengths['defenders'][name]:.0f}" for name in report["defenders"]), "")
    for name, title in (("over_refusal", "over-refusal"), ("useful", "useful")):
        # The first attacker shows the bare seeds: this is the defender when nobody attacks.
        row = report[name][0]
        if any(value is not None for value in row):
            cells = ["–" if value is None else f"{100 * value:.0f}" for value in row]
            table.add_row(Text(f"{title} ({report['attackers'][0]})", style="dim"), *cells, "")
    return table


def _with_interval(estimate: Mapping[str, float], scale: float) -> str:
    return f"{scale * estimate['value']:.2f} [{scale * estimate['low']:.2f}–{scale * estimate['high']:.2f}]"


def _mixture(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= 0.005)
