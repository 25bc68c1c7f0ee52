"""The experiment's pictures, from its numbers alone: PNG files in docs/experiments/."""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import ARMS, FULL, POOLS
from experiment_results import Results, RunResult, runs_of, step_of
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from nemo_magic.report.game_picture import draw_heat_map, format_colour_bar, plain_frame
from nemo_magic.report.palette import GREEN, INK, MUTED, ORANGE

WIDTH = 55
NEAR = 6.0
"""Percent: games nearer than that share a label."""
SHADE = "#ECECEF"
SMOOTHED = 5


@dataclass(frozen=True)
class Matrix:
    """ASR in percent, attackers by defenders, and what it was measured on."""

    title: str
    about: str
    attackers: Sequence[str]
    defenders: Sequence[str]
    asr: Sequence[Sequence[float]]


PUBLISHED = Matrix(
    "The paper, Figure 3",
    "320 HarmBench seeds",
    ["no revision", "SFT", "RL iteration 1", "RL iteration 2", "RL iteration 3"],
    ["base", "RL 1", "RL 2", "RL 3", "RL 4"],
    [
        [20.0, 13.5, 10.6, 6.9, 2.2],
        [21.3, 16.6, 10.0, 2.2, 1.3],
        [24.1, 20.9, 11.6, 3.8, 1.3],
        [26.6, 19.1, 10.3, 3.4, 0.6],
        [27.8, 21.3, 10.0, 2.2, 0.3],
    ],
)


def draw(results: Results, folder: Path) -> None:
    """All pictures that there are numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"rewards": rewards, "curves": curves, "tradeoff": tradeoff, "crossplay": crossplay, "pools": pools}
    for name, make in pictures.items():
        figure = make(results)
        FigureCanvasAgg(figure)
        png = io.BytesIO()
        figure.savefig(png, dpi=110, facecolor="white", metadata={"Software": None})
        # A palette says as much in half the bytes.
        Image.open(png).convert("RGB").quantize(128).save(folder / f"{name}.png", optimize=True)


def rewards(results: Results) -> Figure:
    """Training under the published and under the robust rewards, all games of both warm-ups in a panel."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    arms = {"Published rewards, game=paper": ("paper", "paper_warmed"), "game=robust": (FULL, "robust_warmed")}
    for axes, (title, names) in zip(figure.subplots(1, 2, sharey=True), arms.items(), strict=True):
        runs = [run for run in results["runs"].values() if run["arm"] in names]
        if runs:
            _curves_of(axes, runs, f"{title}: {len(runs)} games")
            axes.set_xlabel("training step", color=INK)
    handles = [
        Line2D([], [], color=GREEN, lw=2, label="useful answers, in training"),
        Line2D([], [], color=ORANGE, lw=2, label="attack success, in training"),
        Line2D([], [], color=GREEN, marker="^", lw=0, label="last defender: useful, warmed-up attacker"),
        Line2D([], [], color=ORANGE, marker="o", lw=0, label="last defender: success of the best attacker"),
        Patch(color=SHADE, label="the attacker learns"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def curves(results: Results) -> Figure:
    """ASR and usefulness in training, an arm a panel, a seed a thin line; the yardstick at the right of each."""
    arms = [arm for arm in ARMS if runs_of(results, arm)]
    columns = 5
    figure = Figure(figsize=(13, 2.6 * math.ceil(len(arms) / columns) + 0.7), layout="constrained")
    grid = figure.subplots(math.ceil(len(arms) / columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, arm in zip(grid.flat, arms, strict=False):
        _curves_of(axes, runs_of(results, arm), ARMS[arm].title)
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    figure.supxlabel("training step", fontsize=10, color=INK)
    handles = [
        Line2D([], [], color=ORANGE, lw=2, label="ASR in training (mean over seeds; a seed is thin)"),
        Line2D([], [], color=GREEN, lw=2, label="useful answers in training"),
        Line2D([], [], color=ORANGE, marker="o", lw=0, label="last defender: ASR, best attacker of the full games"),
        Line2D([], [], color=GREEN, marker="^", lw=0, label="last defender: useful, warmed-up attacker"),
        Patch(color=SHADE, label="the attacker learns (self-play: in every other step)"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _curves_of(axes: Axes, runs: Sequence[RunResult], title: str) -> None:
    for first, last in runs[0]["attacker_phases"]:
        if last > first:
            axes.axvspan(first - 0.5, last + 0.5, color=SHADE, lw=0, zorder=0)
    for name, color in (("useful", GREEN), ("asr", ORANGE)):
        lines = [[math.nan if v is None else 100 * v for v in run["curves"][name]] for run in runs]
        steps = runs[0]["curves"]["step"]
        for line in lines:
            axes.plot(steps, line, color=color, lw=0.6, alpha=0.4)
        means = [_mean(values) for values in zip(*lines, strict=True)]
        axes.plot(steps, _smooth(means), color=color, lw=2)
    for run in runs:
        for name, color, marker in (("useful_attacked", GREEN, "^"), ("asr_best", ORANGE, "o")):
            axes.plot(
                81,
                100 * run["yardstick"][name],
                marker,
                color=color,
                ms=6,
                mec="white",
                mew=0.6,
                clip_on=False,
                zorder=5,
            )
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_xlim(0, 84)
    axes.set_xticks([0, 15, 30, 45, 60, 75])
    axes.set_ylim(-2, 102)
    _percent(axes.yaxis)
    _plain(axes)


def tradeoff(results: Results) -> Figure:
    """Every last defender: how far the worst of its opponents breaks it, and how useful it is under attack."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    heaps: list[list[tuple[float, float, str]]] = []
    for arm in ARMS:
        for run in runs_of(results, arm):
            x, y = 100 * broken(run["yardstick"]), 100 * run["yardstick"]["useful_attacked"]
            heap = next((heap for heap in heaps if math.dist(heap[0][:2], (x, y)) < NEAR), [])
            if not heap:
                heaps.append(heap)
            heap.append((x, y, arm.replace("_", " ")))
    for heap in heaps:
        axes.plot(
            [x for x, _, _ in heap], [y for _, y, _ in heap], "o", color=ORANGE, ms=8, alpha=0.6, mec="white", mew=0.7
        )
        x, y = fmean(x for x, _, _ in heap), fmean(y for _, y, _ in heap)
        count = Counter(name for _, _, name in heap)
        text = textwrap.fill(" · ".join(f"{name} ×{n}" for name, n in count.items()), WIDTH)
        side, edge = (1, "left") if x < 50 else (-1, "right")
        up = "top" if y > 50 else "bottom"
        axes.annotate(text, (x, y), (9 * side, 5 if y > 50 else -5), textcoords="offset points", fontsize=9, color=INK,
                      ha=edge, va=up)  # fmt: skip
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("ASR of the opponent that breaks it most", color=INK)
    axes.set_ylabel("useful answers under the warmed-up attacker", color=INK)
    axes.set_title("Last defenders, a dot a game", loc="left", fontsize=12, fontweight="bold", color=INK)
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    _plain(axes)
    return figure


def broken(figures: Mapping[str, float]) -> float:
    """ASR of the opponent of the yardstick that has most against a defender."""
    return max(figures[name] for name in ("asr_warmed_up", "asr_best", "asr_worst_strategy"))


def crossplay(results: Results) -> Figure:
    """Attackers by defenders of the full game and of that with the published rewards, beside Figure 3 of the paper."""
    matrices = [
        _mean_matrix(runs_of(results, arm), ARMS[arm].title) for arm in (FULL, "paper") if runs_of(results, arm)
    ]
    matrices.append(PUBLISHED)
    figure = Figure(figsize=(4.7 * len(matrices), 4), layout="constrained")
    panels = figure.subplots(1, len(matrices), width_ratios=[len(one.defenders) for one in matrices], squeeze=False)
    for axes, matrix in zip(panels.flat, matrices, strict=True):
        image = draw_heat_map(axes, matrix.asr, matrix.attackers, matrix.defenders)
        _titled(axes, matrix.title, f"ASR %, {matrix.about}")
    bar = figure.colorbar(image, ax=list(panels.flat), fraction=0.02, pad=0.01, ticks=[0, 50, 100])
    format_colour_bar(bar)
    return figure


def _mean_matrix(runs: Sequence[RunResult], title: str) -> Matrix:
    leagues = [run["league"] for run in runs]
    rows, columns = len(leagues[0]["attackers"]), len(leagues[0]["defenders"])
    return Matrix(
        title[0].upper() + title[1:],
        f"mean of {len(leagues)} games, {leagues[0]['games'][1]} attacks a cell in each",
        ["no rewrite", "warmed up", *(f"RL iteration {n}" for n in range(1, rows - 1))],
        ["base", *(f"RL {n}" for n in range(1, columns))],
        [[100 * fmean(league["asr"][i][j] for league in leagues) for j in range(columns)] for i in range(rows)],
    )


def pools(results: Results) -> Figure:
    """Exploitability of every kept defender of the latest opponent's games and of the pools', a thin line a seed."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, arm in zip(figure.subplots(1, len(POOLS), sharey=True), POOLS, strict=True):
        runs = runs_of(results, arm)
        _titled(axes, ARMS[arm].title, f"exploitability of each kept defender; seeds: {len(runs)}")
        axes.set_xlim(0, 76)
        axes.set_xticks(range(0, 76, 15))
        axes.set_ylim(-2, 102)
        axes.set_xlabel("training step", color=INK)
        _percent(axes.yaxis)
        _plain(axes)
        if not runs:
            continue
        steps = [step_of(name) for name in runs[0]["league"]["defenders"]]
        lines = [
            [100 * (max(row[j] for row in run["league"]["asr"]) - run["league"]["value"]) for j in range(len(steps))]
            for run in runs
        ]
        for line in lines:
            axes.plot(steps, line, color=ORANGE, lw=0.8, alpha=0.5)
        axes.plot(steps, [fmean(values) for values in zip(*lines, strict=True)], "o-", color=ORANGE, lw=2, ms=4.5)
    return figure


def _titled(axes: Axes, title: str, about: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=20)
    note = axes.annotate(about, (0, 1), (0, 6), "axes fraction", textcoords="offset points", fontsize=9, color=MUTED)
    note.set_in_layout(False)


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return fmean(there) if there else math.nan


def _smooth(values: Sequence[float]) -> list[float]:
    half = SMOOTHED // 2
    return [_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:.0f} %")


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#BBBBBB", linewidth=0.5, alpha=0.6)
    plain_frame(axes)
