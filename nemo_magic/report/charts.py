"""A run's charts, as plotly figures in JSON: plotly's Python classes would take seconds to build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_magic.game.payoff import CrossPlay
from nemo_magic.report.palette import (
    BLUE,
    GREEN,
    HEAT,
    INK,
    MUTED,
    ORANGE,
    OTHER_SHADE,
    PALETTE,
    PHASE_SHADES,
    PURPLE,
)
from nemo_magic.report.records import GAME_METRICS
from nemo_magic.report.series import Buckets, Phase

_HEAT_SCALE = [list(stop) for stop in zip((0, 0.15, 0.4, 0.7, 1), HEAT, strict=True)]
_GRID = "#E3E3E8"
_DASHES = ("solid", "dash", "dot", "dashdot")
MAX_SHADED = 120
"""More phases than that cannot be told apart, and cost a browser seconds."""

GAME = (
    ("asr", ORANGE, "circle"),
    ("over_refusal", BLUE, "square"),
    ("useful", GREEN, "triangle-up"),
    ("intent_preserved", PURPLE, "diamond"),
)
STEP_AXIS = {"title": {"text": "training step"}, "showgrid": False}
TIMES = ("generate_attacker", "generate_defender", "logprobs", "judge_wait", "update", "validate")


@dataclass(frozen=True)
class Chart:
    """A chart. ``figure``: plotly's ``data`` and ``layout``. ``note``: how to read it, or what is left out. ``height``:
    pixels."""

    key: str
    title: str
    figure: Mapping[str, Any]
    note: str = ""
    wide: bool = False
    height: int = 340


def layout(**own: Any) -> dict[str, Any]:
    """The layout that all charts share, with a chart's own settings laid over it; axes are merged key by key."""
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": "#999999", "automargin": True, "title": {"standoff": 8}}
    whole: dict[str, Any] = {
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 44, "r": 12, "t": 12, "b": 36},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
        "colorway": list(PALETTE),
    }
    for name in ("xaxis", "yaxis"):
        whole[name] = axis | own.pop(name, {})
    return whole | own


def line(
    buckets: Buckets, metric: str, name: str, color: str | None = None, factor: float = 1.0, **own: Any
) -> dict[str, Any] | None:
    """A metric as a line; None where the run has none of it."""
    points = buckets.of(metric)
    if not points.steps:
        return None
    values = [_short(factor * value) for value in points.means]
    style = {} if color is None else {"color": color}
    own = {"mode": "lines", "line": {"width": 1.8, **style, **own.pop("line", {})}} | own
    # A single point has no line to be seen by.
    if len(values) == 1:
        own["mode"] = "markers"
    return {"type": "scatter", "name": name, "x": points.steps, "y": values} | own


def game(buckets: Buckets, phases: Sequence[Phase]) -> Chart | None:
    """Held-out and sampled shares over steps, phases shaded, with the reason why each phase ended."""
    data: list[Any] = []
    for metric, color, marker in GAME:
        name = GAME_METRICS[metric]
        held_out = {"size": 7, "symbol": marker}
        data.append(
            line(buckets, f"val_rollouts/{metric}", f"{name}, held out", color, 100, mode="lines+markers",
                 marker=held_out, line={"width": 2.2}, legendgroup=metric)
        )  # fmt: skip
        data += _band(buckets, f"train_rollouts/{metric}", color, metric)
        data.append(
            line(buckets, f"train_rollouts/{metric}", f"{name}, sampled", color, 100, opacity=0.55,
                 line={"width": 1}, legendgroup=metric)
        )  # fmt: skip
    data = [trace for trace in data if trace]
    if not data:
        return None
    note = "Held out: the pair at temperature 0 on seeds it never learns from. Sampled: what it learns from."
    shapes: list[Any] = []
    if len(phases) <= MAX_SHADED:
        shapes = [
            {"type": "rect", "xref": "x", "yref": "paper", "x0": one.first - 1, "x1": one.last, "y0": 0, "y1": 1,
             "fillcolor": PHASE_SHADES.get(one.learner, OTHER_SHADE), "line": {"width": 0}, "layer": "below"}
            for one in phases
        ]  # fmt: skip
        data += [
            {"type": "scatter", "mode": "markers", "name": f"{role} learns", "x": [None], "y": [None],
             "marker": {"symbol": "square", "size": 12, "color": shade, "line": {"color": "#AAAAAA", "width": 1}}}
            for role, shade in PHASE_SHADES.items() if any(one.learner == role for one in phases)
        ]  # fmt: skip
        ends = [one for one in phases if one.ended]
        data.append(
            {"type": "scatter", "mode": "markers", "name": "phase ends", "x": [one.last for one in ends],
             "y": [101.5] * len(ends), "marker": {"symbol": "triangle-down", "size": 9, "color": MUTED},
             "text": [f"{one.learner} phase {one.index} ends: {one.ended}" for one in ends],
             "hovertemplate": "%{text}<extra></extra>", "cliponaxis": False, "showlegend": bool(ends)}
        )  # fmt: skip
        note += " A triangle marks the end of a phase; the table below says why it ended."
    else:
        note += f" {len(phases):,} phases are too many to be shaded."
    return Chart(
        "game", "Attack success, over-refusal, usefulness, intent",
        {"data": data, "layout": layout(
            shapes=shapes, xaxis=STEP_AXIS,
            yaxis={"title": {"text": "percent"}, "range": [-2, 104]},
        )},
        note + _averaged(buckets), wide=True, height=560,
    )  # fmt: skip


def rewards(buckets: Buckets, role: str) -> Chart | None:
    """A role's reward and its parts."""
    prefix = "train_rollouts/reward_"
    parts = sorted(
        name.removeprefix(prefix).removesuffix(f"_{role}")
        for name in buckets.names()
        if name.startswith(prefix) and name.endswith(f"_{role}")
    )
    traces = [line(buckets, f"{prefix}{role}", "total", INK, line={"width": 2.6})]
    traces += [
        line(buckets, f"{prefix}{part}_{role}", part, PALETTE[i % len(PALETTE)], line={"dash": _DASHES[i % 4]})
        for i, part in enumerate(parts)
    ]
    return _chart(f"rewards_{role}", f"Reward of the {role}, by part", traces, "mean reward", zero=True)


def learner(buckets: Buckets) -> list[Chart]:
    """The optimiser's metrics: entropy, generator against trainer, gradient norm."""
    known = {
        "Entropy and variety": [("entropy/attacker", "entropy of the attacker, nats"),
                                ("entropy/defender", "entropy of the defender, nats"),
                                ("train_rollouts/attack_distance", "distance of attacks on one seed")],
        "Generator against trainer": [("train_optim/mismatch", "mismatch, mean exp|Δ log π|"),
                                      ("train_optim/neg_logprob_minus_entropy", "neg_logprob_minus_entropy, nats")],
        "Gradient norm": [("train_optim/grad_norm", "before clipping")],
    }  # fmt: skip
    charts = [
        _chart(
            f"learner_{number}", title,
            [line(buckets, metric, name, PALETTE[i], line={"dash": _DASHES[i]})
             for i, (metric, name) in enumerate(lines)],
            "", zero=title != "Generator against trainer",
        )
        for number, (title, lines) in enumerate(known.items())
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def judge(buckets: Buckets) -> list[Chart]:
    """The judge's metrics: unknown verdicts, latency, outages, requests."""
    unknown = [
        line(buckets, "train_rollouts/unknown_share", "verdicts with something unknown", ORANGE, 100),
        *(
            line(buckets, name, f"second judge agrees: {name.rpartition('agreement_')[2]}", None, 100)
            for name in sorted(buckets.names())
            if name.startswith("judge_audit/agreement_")
        ),
    ]
    latency = [
        line(buckets, "judge/latency_mean_s", "seconds to an answer", BLUE),
        line(buckets, "judge/outage_s", "seconds without a judge", ORANGE, line={"dash": "dash"}),
    ]
    counts = [
        line(buckets, f"judge/{name}", name.replace("_", " "), PALETTE[i], line={"dash": _DASHES[i % 4]})
        for i, name in enumerate(("items", "requests", "duplicates", "unknown", "retries", "hedges", "protocol_errors"))
    ]
    charts = [
        _chart("judge_unknown", "Open verdicts, and the second judge", unknown, "percent", zero=True),
        _chart("judge_latency", "Latency and outages", latency, "seconds", zero=True),
        _chart("judge_counts", "Requests a step", counts, "count", zero=True),
    ]
    return [chart for chart in charts if chart]


def times(buckets: Buckets) -> list[Chart]:
    """The seconds of a step by part, and the throughput."""
    traces = [
        line(buckets, f"timers/{name}", name.replace("_", " "), PALETTE[i], stackgroup="all", line={"width": 0.5})
        for i, name in enumerate(TIMES)
    ]
    speed = [line(buckets, "throughput/tokens_per_second", "sampled tokens a second", BLUE)]
    charts = [
        _chart("times", "Seconds of a step, by part", traces, "seconds", zero=True),
        _chart("speed", "Throughput", speed, "tokens/s", zero=True),
    ]
    return [chart for chart in charts if chart]


def alarms(buckets: Buckets, names: Sequence[str]) -> Chart | None:
    """How near each alarm is to its threshold."""
    traces = [
        line(buckets, f"alarms/{name}", name.replace("_", " "), PALETTE[i], line={"dash": _DASHES[i % 4]})
        for i, name in enumerate(names)
    ]
    chart = _chart("alarms", "How near each alarm is", traces, "1 = sounds", zero=True)
    if chart is not None:
        chart.figure["layout"]["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
             "line": {"color": "#B00020", "width": 1.5, "dash": "dash"}}
        ]  # fmt: skip
    return chart


def cross_play(
    matrix: CrossPlay, low: Sequence[Any] = (), high: Sequence[Any] = (), title: str = "Cross-play"
) -> Chart:
    """ASR in percent, attackers down, defenders across, in order of training: the paper's Figure 3."""
    percent = [[_short(100 * cell) for cell in row] for row in matrix.asr]
    hover = "attacker %{y}<br>defender %{x}<br>ASR %{z:.1f} %"
    data: dict[str, Any] = {
        "type": "heatmap", "z": percent, "x": matrix.defenders, "y": matrix.attackers, "zmin": 0, "zmax": 100,
        "colorscale": _HEAT_SCALE, "texttemplate": "%{z:.1f}", "xgap": 2, "ygap": 2,
        "colorbar": {"thickness": 10, "ticksuffix": " %", "tickvals": [0, 50, 100], "outlinewidth": 0},
    }  # fmt: skip
    if low and high:
        data["customdata"] = [
            [[100 * a, 100 * b] for a, b in zip(*rows, strict=True)] for rows in zip(low, high, strict=True)
        ]
        hover += " (%{customdata[0]:.1f} to %{customdata[1]:.1f})"
    data["hovertemplate"] = f"{hover}<extra></extra>"
    seeds = f" on {matrix.num_seeds} harmful seeds a cell" if matrix.num_seeds else ""
    return Chart(
        "crossplay", title,
        {"data": [data], "layout": layout(
            hovermode="closest", xaxis={"title": {"text": "defender"}, "type": "category", "showgrid": False},
            yaxis={"title": {"text": "attacker"}, "type": "category", "autorange": "reversed", "showgrid": False},
        )},
        f"ASR in percent{seeds}. Down a column: the same defender against later and later attackers. Along a row: "
        "the same attacker against later and later defenders.",
        height=120 + 46 * max(4, len(matrix.attackers)),
    )  # fmt: skip


def worst_cases(matrix: CrossPlay) -> Chart | None:
    """For each saved defender the best saved attacker's ASR, and over-refusal and usefulness on benign seeds."""
    if len(matrix.defenders) < 2:
        return None
    rows = [
        ("worst case over all saved attackers", [matrix.worst_case(j) for j in range(len(matrix.defenders))], ORANGE),
        ("over-refusal, benign seeds", matrix.over_refusal, BLUE),
        ("useful, benign seeds", matrix.useful, GREEN),
    ]
    data = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": matrix.defenders,
         "y": [_short(100 * value) for value in values],
         "line": {"color": color, "dash": dash, "width": 2.2}, "marker": {"size": 8, "symbol": symbol}}
        for (name, values, color), dash, symbol in
        zip(rows, _DASHES, ("circle", "square", "triangle-up"), strict=False) if values
    ]  # fmt: skip
    return Chart(
        "worst", "Exploitability over rounds",
        {"data": data, "layout": layout(
            xaxis={"type": "category", "title": {"text": "defender"}, "showgrid": False},
            yaxis={"range": [-2, 104], "title": {"text": "percent"}},
        )},
        "What the best attacker of the whole run reaches against each saved defender: ASR against the current attacker "
        "alone says little once that attacker has collapsed.",
    )  # fmt: skip


def _chart(key: str, title: str, traces: Sequence[Any], unit: str, zero: bool = False) -> Chart | None:
    data = [trace for trace in traces if trace]
    if not data:
        return None
    yaxis: dict[str, Any] = {"title": {"text": unit}} | ({"rangemode": "tozero"} if zero else {})
    axes = layout(xaxis=STEP_AXIS, yaxis=yaxis, showlegend=True)
    return Chart(key, title, {"data": data, "layout": axes})


def _band(buckets: Buckets, metric: str, color: str, group: str) -> list[dict[str, Any]]:
    """Lowest to highest of each bucket, where a bucket is more than one row."""
    points = buckets.of(metric)
    if buckets.width == 1 or not points.steps:
        return []
    shared = {"type": "scatter", "mode": "lines", "x": points.steps, "hoverinfo": "skip", "showlegend": False,
              "legendgroup": group, "line": {"width": 0, "color": color}}  # fmt: skip
    lows, highs = ([_short(100 * value) for value in values] for values in (points.lows, points.highs))
    return [shared | {"y": lows}, shared | {"y": highs, "fill": "tonexty", "fillcolor": f"{color}1A"}]


def _averaged(buckets: Buckets) -> str:
    if buckets.width == 1:
        return ""
    return f" Each point is the mean of {buckets.width:,} steps; the pale band spans their lowest to their highest."


def _short(value: float) -> float:
    return float(f"{value:.5g}")
