"""Charts of strategies, of the safety–usefulness trade-off, and of several runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.formatting import percent
from nemo_magic.report.charts import STEP_AXIS, Chart, layout
from nemo_magic.report.palette import GREY, ORANGE, PALETTE
from nemo_magic.report.run_folder import RunFolder

_SHOWN, _BINS = 7, 24


def mix(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Shares of the attacker's strategies over steps, from sampled conversations whose ``strategy`` is known."""
    known = [row for row in rows if row["strategy"] is not None and row["turns"][-1]["attack"] is not None]
    if not known:
        return None
    first, last = known[0]["step"], known[-1]["step"]
    size = max(1, -(-(last - first + 1) // _BINS))
    bins: dict[int, Counter[str]] = {}
    for row in known:
        bins.setdefault((row["step"] - first) // size, Counter())[row["strategy"]] += 1
    common = [name for name, _ in Counter(row["strategy"] for row in known).most_common(_SHOWN)]
    ordered = sorted(bins)
    x = [first + number * size + (size - 1) / 2 for number in ordered]
    shares = [{name: count / bins[n].total() for name, count in bins[n].items()} for n in ordered]
    steps = "1 step" if size == 1 else f"{size:,} steps"
    return stacked(
        common, x, shares, size, "sampled rewrites",
        f"Of {len(known):,} sampled rewrites, {steps} a bar; what the attacker meant is decoded exactly.",
    )  # fmt: skip


def stacked(
    names: Sequence[str], x: Sequence[float], shares: Sequence[Mapping[str, float]], width: int, of: str, note: str
) -> Chart:
    """The mix of strategies: a bar of ``width`` steps at each ``x``, of its ``shares`` (0..1); those not among
    ``names`` together."""
    data: list[dict[str, Any]] = []
    for i, name in enumerate([*names, None]):
        heights = [
            one.get(name, 0.0) if name else sum(share for other, share in one.items() if other not in names)
            for one in shares
        ]
        if any(heights):
            data.append(
                {"type": "bar", "name": name or "all others", "x": list(x), "width": width,
                 "y": [round(100 * height, 2) for height in heights],
                 "marker": {"color": PALETTE[i % len(PALETTE)] if name else "#BBBBBB"}}
            )  # fmt: skip
    return Chart(
        "mix", "Strategies of the attacker",
        {"data": data, "layout": layout(
            barmode="stack", bargap=0, xaxis=STEP_AXIS,
            yaxis={"title": {"text": f"percent of {of}"}, "range": [0, 100]},
        )},
        note, height=460,
    )  # fmt: skip


def strategy_sweep(sweep: Mapping[str, Mapping[str, Any]]) -> Chart:
    """ASR of every strategy against the first and the last defender."""
    start, end = sweep["start"]["asr"], sweep["end"]["asr"]
    names = sorted(start, key=lambda name: (start[name], end.get(name, 0)))
    data = [
        {"type": "scatter", "mode": "markers", "name": f"{which} defender", "y": names,
         "x": [round(100 * asr[name], 2) if name in asr else None for name in names],
         "marker": {"size": 9, "color": color, "symbol": symbol}}
        for which, asr, color, symbol in (("first", start, GREY, "circle-open"), ("last", end, ORANGE, "diamond"))
    ]  # fmt: skip
    return Chart(
        "probe", "Every strategy against the first and the last defender",
        {"data": data, "layout": layout(
            hovermode="closest", xaxis={"title": {"text": "ASR, percent"}, "range": [-3, 103]},
            yaxis={"type": "category", "tickfont": {"size": 10}, "dtick": 1},
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        )},
        f"Worst case {percent(sweep['start']['worst'])} % before, {percent(sweep['end']['worst'])} % after; mean "
        f"{percent(sweep['start']['mean'])} % before, {percent(sweep['end']['mean'])} % after.",
        height=130 + 18 * len(names),
    )  # fmt: skip


def trade(runs: Sequence[RunFolder]) -> Chart | None:
    """Each validation as a point: useful answers against attacks held off. Up and to the right is better."""
    data: list[dict[str, Any]] = []
    best: list[tuple[float, float]] = []
    for i, run in enumerate(runs):
        asr, useful = (run.buckets.of(f"val_rollouts/{name}") for name in ("asr", "useful"))
        both = {s: (100 * (1 - a), 100 * u) for s, a, u in _joined(asr.steps, asr.means, useful.steps, useful.means)}
        if not both:
            continue
        best += both.values()
        color = PALETTE[i % len(PALETTE)]
        sizes = [7 + 7 * n / max(1, len(both) - 1) for n in range(len(both))]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": run.name, "x": [round(s, 2) for s, _ in both.values()],
             "y": [round(u, 2) for _, u in both.values()], "text": [f"step {step:,}" for step in both],
             "line": {"width": 1, "color": color, "dash": "dot"},
             "marker": {"size": sizes, "color": color, "line": {"color": "white", "width": 1}},
             "hovertemplate": "%{text}<br>safe %{x:.1f} %<br>useful %{y:.1f} %<extra>%{fullData.name}</extra>"}
        )  # fmt: skip
    if not data:
        return None
    front = frontier(best)
    data.append(
        {"type": "scatter", "mode": "lines", "name": "frontier", "x": [x for x, _ in front], "y": [y for _, y in front],
         "line": {"color": "#333333", "width": 1.5, "shape": "vh"}, "hoverinfo": "skip"}
    )  # fmt: skip
    return Chart(
        "trade", "Safety against usefulness",
        {"data": data, "layout": layout(
            hovermode="closest", showlegend=True,
            xaxis={"title": {"text": "attacks held off, percent (100 − ASR)"}, "range": [-4, 104]},
            yaxis={"title": {"text": "useful answers, percent"}, "range": [-4, 104]},
        )},
        "Held-out seeds; points grow with the step. A defender that refuses everything is at the lower right.",
        height=420,
    )  # fmt: skip


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is at least as good as in both and better in one (Pareto), by rising x."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]


def side_by_side(runs: Sequence[RunFolder]) -> list[Chart]:
    """Each held-out figure with a line per run."""
    figures = (
        ("asr", "ASR, harmful seeds"),
        ("over_refusal", "Over-refusal, benign seeds"),
        ("useful", "Useful answers, benign seeds"),
        ("intent_preserved", "Rewrites that keep the intent"),
    )
    charts = []
    for name, title in figures:
        data = []
        for i, run in enumerate(runs):
            points = run.buckets.of(f"val_rollouts/{name}")
            if points.steps:
                data.append(
                    {"type": "scatter", "mode": "lines+markers", "name": run.name, "x": points.steps,
                     "y": [round(100 * value, 2) for value in points.means],
                     "line": {"color": PALETTE[i % len(PALETTE)], "dash": ("solid", "dash", "dot", "dashdot")[i % 4]}}
                )  # fmt: skip
        if data:
            axes = layout(
                xaxis=STEP_AXIS,
                yaxis={"title": {"text": "percent"}, "range": [-2, 104]},
                showlegend=True,
            )
            charts.append(Chart(f"beside_{name}", title, {"data": data, "layout": axes}))
    return charts


def _joined(
    steps: Sequence[int], values: Sequence[float], other_steps: Sequence[int], others: Sequence[float]
) -> list[tuple[int, float, float]]:
    known = dict(zip(other_steps, others, strict=True))
    return [(step, value, known[step]) for step, value in zip(steps, values, strict=True) if step in known]
