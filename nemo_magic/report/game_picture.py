"""One picture of a game: how attack success, over-refusal and usefulness moved, and the cross-play matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nemo_magic.fsync_io import replacing
from nemo_magic.game.payoff import CrossPlay
from nemo_magic.report.palette import BLUE, GREEN, HEAT, INK, MUTED, ORANGE, OTHER_SHADE, PHASE_SHADES
from nemo_magic.report.records import StepRecord, read_records

_CURVES = (
    ("asr", "attack success (ASR)", ORANGE, "o", "-"),
    ("over_refusal", "over-refusal", BLUE, "s", (0, (4, 1.6))),
    ("useful", "useful answers", GREEN, "^", (0, (1.2, 1.2))),
)
_HEAT_MAP = LinearSegmentedColormap.from_list("asr", HEAT)
_DARK_FROM = 66.0
"""Percent: from here on white reads better than ink."""


def draw_game(metrics_jsonl: str | Path, crossplay_json: str | Path | None, out_png: str | Path) -> Path:
    """Draw a run and save it as a PNG; returns where.

    Left, shares in percent over training steps, phases shaded by who learns: held-out ASR, over-refusal and useful
    answers, and the training ASR as a thin line. Right, cross-play ASR, attackers × defenders. Without a cross-play
    file (None, or not there) the curves get the whole width. Raises ValueError when the metrics hold no step.
    """
    records = read_records(metrics_jsonl)
    if not records:
        raise ValueError(f"{metrics_jsonl} holds no step to draw")
    crossplay = None
    if crossplay_json is not None and Path(crossplay_json).exists():
        crossplay = CrossPlay.load(crossplay_json)
    figure = build_figure(records, crossplay)
    out = Path(out_png)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        figure.savefig(partial, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out


def build_figure(records: Sequence[StepRecord], crossplay: CrossPlay | None) -> Figure:
    """The picture as a matplotlib figure on an Agg canvas, for those who want to save it otherwise."""
    columns = 0 if crossplay is None else len(crossplay.defenders)
    right = min(max(3.6, 1.9 + 0.72 * columns), 9.0)
    figure = Figure(figsize=(8.6 if crossplay is None else 8.2 + right, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.04)  # type: ignore[union-attr, call-arg]
    if crossplay is None:
        _draw_curves(figure.subplots(), records)
        return figure
    curves, heat = figure.subplots(1, 2, width_ratios=[8.2, right])
    _draw_curves(curves, records)
    _draw_crossplay(heat, crossplay)
    return figure


def phase_spans(records: Sequence[StepRecord]) -> list[tuple[float, float, str]]:
    """``(first step begins, last step ends, learner)`` of each phase; step ``t`` reaches from t − 1 to t."""
    learning = [record for record in records if record.learner is not None and record.step > 0]
    spans = []
    for (_, learner), members in groupby(learning, key=lambda record: (record.phase_index, str(record.learner))):
        steps = [record.step for record in members]
        spans.append((steps[0] - 1.0, float(steps[-1]), learner))
    return spans


def _draw_curves(axes: Axes, records: Sequence[StepRecord]) -> None:
    spans = phase_spans(records)
    for start, end, learner in spans:
        axes.axvspan(start, end, color=PHASE_SHADES.get(learner, OTHER_SHADE), linewidth=0, zorder=0)
    handles: list[Line2D | Patch] = []
    steps, values = _series(records, "train_rollouts/asr")
    if steps:
        handles += axes.plot(
            steps, values, color=ORANGE, linewidth=1.0, alpha=0.6, zorder=2, label="ASR in training rollouts"
        )
    ends: list[tuple[float, float, str]] = []
    held_out: list[Line2D | Patch] = []
    for below, (name, label, color, marker, dash) in enumerate(_CURVES):  # ASR on top where curves meet
        steps, values = _series(records, f"val_rollouts/{name}")
        if not steps:
            continue
        held_out += axes.plot(
            steps, values, color=color, marker=marker, markersize=5.5, linewidth=2.2, linestyle=dash, zorder=5 - below,
            markeredgecolor="white", markeredgewidth=0.7, label=f"{label}, held out", clip_on=False,
        )  # fmt: skip
        ends.append((steps[-1], values[-1], color))
    _label_ends(axes, ends)
    handles = held_out + handles
    learners = sorted({learner for _, _, learner in spans}, reverse=True)
    handles += [
        Patch(
            facecolor=PHASE_SHADES.get(learner, OTHER_SHADE),
            edgecolor="#BBBBBB",
            linewidth=0.6,
            label=f"{learner} learns",
        )
        for learner in learners
    ]
    last = max(record.step for record in records)
    axes.set_xlim(min(0, min(record.step for record in records)), max(last, 1))
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    axes.grid(axis="y", color="#BBBBBB", linewidth=0.5, alpha=0.6)
    axes.set_xlabel("training step", color=INK)
    plain_frame(axes)
    _title(axes, "The game", "shares of held-out seeds while attacker and defender take turns to learn")
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=2.6, columnspacing=1.6,
    )  # fmt: skip


def _draw_crossplay(axes: Axes, crossplay: CrossPlay) -> None:
    percent = [[100 * cell for cell in row] for row in crossplay.asr]
    image = draw_heat_map(axes, percent, crossplay.attackers, crossplay.defenders)
    seeds = f", {crossplay.num_seeds} seeds a cell" if crossplay.num_seeds else ""
    _title(axes, "Cross-play", f"ASR in percent{seeds}")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 50, 100])
    format_colour_bar(bar)


def draw_heat_map(
    axes: Axes, percent: Sequence[Sequence[float]], attackers: Sequence[str], defenders: Sequence[str]
) -> AxesImage:
    """ASR in percent, attackers down, defenders across, with the number in each cell."""
    image = axes.imshow(percent, cmap=_HEAT_MAP, vmin=0, vmax=100, aspect="auto")
    rows, columns = len(attackers), len(defenders)
    for row, cells in enumerate(percent):
        for column, cell in enumerate(cells):
            ink = "white" if cell > _DARK_FROM else INK
            axes.text(
                column, row, f"{cell:.1f}", ha="center", va="center", color=ink, fontsize=10 if columns < 8 else 8
            )
    # Cells apart from each other by a white line, whatever their colours.
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    long_names = max(len(name) for name in defenders) * columns > 42
    axes.set_xticks(range(columns), defenders, rotation=35 if long_names else 0, ha="right" if long_names else "center")
    axes.set_yticks(range(rows), attackers)
    axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)
    axes.set_xlabel("defender", color=INK)
    axes.set_ylabel("attacker", color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def format_colour_bar(bar: Colorbar) -> None:
    """A colour bar from 0 % to 100 %, without ticks and frame."""
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"], fontsize=8, color=MUTED)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _series(records: Sequence[StepRecord], name: str) -> tuple[list[float], list[float]]:
    points = [(record.step, record.metrics.get(name, math.nan)) for record in records]
    known = [(float(step), 100 * value) for step, value in points if not math.isnan(value)]
    return [step for step, _ in known], [value for _, value in known]


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str]], apart: float = 5.0) -> None:
    """Write each curve's last value at its end, pushed up or down where two would overlap (``apart`` percent)."""
    height = -math.inf
    for step, value, color in sorted(ends, key=lambda end: end[1]):
        height = max(value, height + apart)
        axes.annotate(
            f"{value:.1f}", (step, height), xytext=(7, 0), textcoords="offset points", color=color, fontsize=9,
            fontweight="bold", va="center", annotation_clip=False,
        )  # fmt: skip


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=22)
    axes.annotate(
        subtitle, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", fontsize=9, color=MUTED
    )


def plain_frame(axes: Axes) -> None:
    """Axes with a line at the left and the bottom only, and no ticks."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
