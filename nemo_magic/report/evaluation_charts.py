"""Evaluations' charts: rates with their intervals, several defenders side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.report.charts import Chart, layout
from nemo_magic.report.evaluation_folder import EvaluationFolder, FigureRow
from nemo_magic.report.palette import PALETTE

MAX_PARTS = 30
"""Rows of one chart of categories or methods; the table has them all."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "star")
Row = tuple[str, Sequence[Mapping[str, Any] | None], Sequence[float | None]]
"""A label, each evaluation's rate (``results.json``), and the paper's for the same model."""


def forests(evaluations: Sequence[EvaluationFolder]) -> list[Chart]:
    """Every figure, those where less is better apart from those where more is."""
    charts = []
    for better, title, note in (
        (False, "The lower, the better", "Attack success, and refusals of what is harmless."),
        (True, "The higher, the better", "Refusals of what is harmful, answers to what is harmless."),
    ):
        keys = [key for key, figure in all_figures(evaluations).items() if figure["higher_is_better"] is better]
        rows: list[Row] = [
            (
                f"{task}\n{figure}",
                [one.figures.get((task, figure)) for one in evaluations],
                [one.figures.get((task, figure), {}).get("published") for one in evaluations],
            )
            for task, figure in keys
        ]
        if rows:
            legend = "Bars are 95 % intervals." + (" Hollow diamonds: the paper's." if _any_published(rows) else "")
            charts.append(_dots("forest_up" if better else "forest_down", title, f"{note} {legend}", rows, evaluations))
    return charts


def parts(evaluations: Sequence[EvaluationFolder], by: str) -> list[Chart]:
    """Every figure by ``by_method`` or ``by_category``, where it has several; the highest of the first evaluation on
    top."""
    charts: list[Chart] = []
    for (task, figure), first in all_figures(evaluations).items():
        several = [one.figures.get((task, figure), {}).get(by, {}) for one in evaluations]
        names = list(dict.fromkeys(name for one in several for name in one))
        if len(names) < 2:
            continue
        names.sort(key=lambda name: (-_rate_of(several, name), name))
        rows: list[Row] = [(_shortened(name), [one.get(name) for one in several], []) for name in names[:MAX_PARTS]]
        better = "higher" if first["higher_is_better"] else "lower"
        left_out = f" The first {MAX_PARTS} of {len(names)}." if len(names) > MAX_PARTS else ""
        charts.append(
            _dots(f"{by}_{len(charts)}", f"{task}: {figure}", f"The {better}, the better.{left_out}", rows, evaluations)
        )
    return charts


def curves(evaluations: Sequence[EvaluationFolder]) -> list[Chart]:
    """Of figures over the best of several attempts: the rate had there been fewer."""
    charts: list[Chart] = []
    for task, figure in all_figures(evaluations):
        data: list[dict[str, Any]] = []
        for number, one in enumerate(evaluations):
            curve = one.figures.get((task, figure), {}).get("curve") or {}
            points = [(int(k), rate) for k, rate in curve.items() if rate["rate"] is not None]
            if points:
                color, symbol = PALETTE[number % len(PALETTE)], _SYMBOLS[number % len(_SYMBOLS)]
                data.append(
                    {"type": "scatter", "mode": "lines+markers", "name": one.name, "x": [k for k, _ in points],
                     "y": [_percent(rate["rate"]) for _, rate in points], "line": {"color": color, "width": 2},
                     "marker": {"symbol": symbol, "size": 8},
                     "error_y": {"type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": color,
                                 "array": [_percent(rate["interval"][1] - rate["rate"]) for _, rate in points],
                                 "arrayminus": [_percent(rate["rate"] - rate["interval"][0]) for _, rate in points]}}
                )  # fmt: skip
        if data:
            most = max(trace["x"][-1] for trace in data)
            axes = layout(
                xaxis={"title": {"text": "attempts"}, "range": [0.5, most + 0.5], "dtick": -(-most // 10),
                       "showgrid": False},
                yaxis={"range": [-2, 104], "ticksuffix": " %"}, showlegend=len(data) > 1,
            )  # fmt: skip
            note = "At least one of so many attempts succeeds. Bars are 95 % intervals."
            charts.append(Chart(f"curve_{len(charts)}", f"{task}: {figure}", {"data": data, "layout": axes}, note))
    return charts


def _dots(key: str, title: str, note: str, rows: Sequence[Row], evaluations: Sequence[EvaluationFolder]) -> Chart:
    """A row of dots with intervals for every label, one dot an evaluation."""
    count = len(evaluations)
    data: list[dict[str, Any]] = []
    for number, one in enumerate(evaluations):
        # Beside each other, so that intervals do not cover each other.
        shift = (number - (count - 1) / 2) * min(0.22, 0.7 / count)
        points: list[tuple[float, str, Mapping[str, Any]]] = []
        published: list[tuple[float, str, float]] = []
        for row, (label, rates, values) in enumerate(rows):
            rate, value = rates[number], values[number] if values else None
            if rate is not None and rate["rate"] is not None:
                points.append((row + shift, label, rate))
            if value is not None:
                published.append((row + shift, label, value))
        color, symbol = PALETTE[number % len(PALETTE)], _SYMBOLS[number % len(_SYMBOLS)]
        data.append(
            {"type": "scatter", "mode": "markers", "name": one.name, "y": [y for y, _, _ in points],
             "x": [_percent(rate["rate"]) for _, _, rate in points],
             "error_x": {"type": "data", "symmetric": False, "thickness": 1.4, "width": 4, "color": color,
                         "array": [_percent(rate["interval"][1] - rate["rate"]) for _, _, rate in points],
                         "arrayminus": [_percent(rate["rate"] - rate["interval"][0]) for _, _, rate in points]},
             "marker": {"size": 9, "color": color, "symbol": symbol}, "legendgroup": one.name,
             "customdata": [[label.replace("\n", ", "), *map(_percent, rate["interval"]), rate["hits"], rate["count"]]
                            for _, label, rate in points],
             "hovertemplate": "%{customdata[0]}<br>%{x:.1f} % (%{customdata[1]:.1f} to %{customdata[2]:.1f})<br>"
                              "%{customdata[3]} of %{customdata[4]}<extra>%{fullData.name}</extra>"}
        )  # fmt: skip
        if published:
            data.append(
                {"type": "scatter", "mode": "markers", "name": f"{one.name}: the paper", "legendgroup": one.name,
                 "y": [y for y, _, _ in published], "x": [_percent(value) for _, _, value in published],
                 "marker": {"size": 11, "symbol": "diamond-open", "color": color, "line": {"width": 1.6}},
                 "customdata": [label.replace("\n", ", ") for _, label, _ in published],
                 "hovertemplate": "%{customdata}<br>published %{x:.1f} %<extra></extra>"}
            )  # fmt: skip
    lines = max(label.count("\n") for label, _, _ in rows) + 1
    row_height = max(18 * lines + 8, 15 * count + 8)
    return Chart(
        key, title,
        {"data": data, "layout": layout(
            hovermode="closest", showlegend=len(data) > 1, legend=_legend(),
            margin={"l": 10, "r": 14, "t": 30, "b": 30},
            xaxis={"range": [-2, 102], "ticksuffix": " %", "side": "top", "dtick": 25},
            yaxis={"tickvals": list(range(len(rows))), "ticktext": [label for label, _, _ in rows],
                   "range": [len(rows) - 0.5, -0.5], "ticks": "", "showgrid": True, "griddash": "dot"},
        )},
        note, height=90 + row_height * len(rows) + (22 * ((len(data) + 1) // 2) if len(data) > 1 else 0),
    )  # fmt: skip


def _legend() -> dict[str, Any]:
    return {
        "orientation": "h",
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "x": 0,
        "xref": "container",
        "font": {"size": 11},
    }


def all_figures(evaluations: Sequence[EvaluationFolder]) -> dict[tuple[str, str], FigureRow]:
    """Every figure that any of the evaluations has, in order."""
    figures: dict[tuple[str, str], FigureRow] = {}
    for one in evaluations:
        for key, figure in one.figures.items():
            figures.setdefault(key, figure)
    return figures


def _rate_of(several: Sequence[Mapping[str, Any]], name: str) -> float:
    return next((one[name]["rate"] for one in several if name in one and one[name]["rate"] is not None), -1.0)


def _any_published(rows: Sequence[Row]) -> bool:
    return any(value is not None for _, _, values in rows for value in values)


def _shortened(name: str) -> str:
    name = name.replace("<", "‹").replace(">", "›")
    return name if len(name) <= 34 else f"{name[:32]}…"


def _percent(value: float) -> float:
    return float(f"{100 * value:.4g}")
