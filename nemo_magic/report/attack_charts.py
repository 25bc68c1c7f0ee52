"""Charts of the analysis of attacks over steps: hybrids, novelty, intent, diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.report.charts import STEP_AXIS, Chart, layout
from nemo_magic.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE
from nemo_magic.report.strategy_charts import stacked

SHARES = (
    ("hybrid_share", "several strategies at once", BLUE, "circle"),
    ("novel_share", "combination not in the attack pool", GREEN, "square"),
    ("intent_lost", "intent lost", PURPLE, "diamond"),
    ("unknown_share", "strategy unknown", GREY, "x"),
)
LIKENESS = (
    ("self_bleu", "self-BLEU, different seeds", ORANGE, "circle"),
    ("self_bleu_same_seed", "self-BLEU, two attacks on one seed", BLUE, "square"),
    ("similarity", "cosine similarity of embeddings", GREEN, "diamond"),
)
_SHOWN = 7


def attack_charts(analysis: Mapping[str, Any], mix: bool) -> list[Chart]:
    """``analysis``: the content of ``attacks.json``. ``mix``: draw the mix of strategies as well."""
    charts = [
        _mix(analysis) if mix else None,
        _lines(
            "attack_shares", "Hybrids, novelty, intent", analysis["bins"], SHARES, 100,
            {"title": {"text": "percent of attacks"}, "range": [-2, 104]}, _novelty(analysis),
        ),
        _lines(
            "attack_likeness", "How alike attacks are", analysis["bins"], LIKENESS, 1,
            {"title": {"text": "1 = all alike"}, "range": [-0.02, 1.04]}, _samples(analysis),
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def middle(one: Mapping[str, Any]) -> float:
    """The middle of a stretch of steps."""
    return float((one["first"] + one["last"]) / 2)


def common(analysis: Mapping[str, Any]) -> list[str]:
    """The most frequent strategies, as many as a chart can tell apart."""
    return [row["strategy"] for row in analysis["strategies"][:_SHOWN]]


def _mix(analysis: Mapping[str, Any]) -> Chart | None:
    bins, names = analysis["bins"], common(analysis)
    if not bins or analysis["labels"] is None:
        return None
    width = max(one["last"] - one["first"] + 1 for one in bins)
    return stacked(
        names, [middle(one) for one in bins], [one["mix"] for one in bins], width, "attacks",
        f"Of {analysis['attacks']:,} attacks, {width:,} steps a bar, as {analysis['labels']} labelled them.",
    )  # fmt: skip


def _lines(
    key: str, title: str, bins: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, str, str, str]],
    factor: float, yaxis: Mapping[str, Any], note: str,
) -> Chart | None:  # fmt: skip
    data = []
    for name, label, color, symbol in lines:
        points = [(middle(one), one[name]) for one in bins if one[name] is not None]
        if not points or (name == "unknown_share" and not any(share for _, share in points)):
            continue
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": label, "x": [step for step, _ in points],
             "y": [round(factor * value, 4) for _, value in points],
             "line": {"color": color, "width": 1.8}, "marker": {"size": 6, "symbol": symbol}}
        )  # fmt: skip
    if not data:
        return None
    axes = layout(xaxis=STEP_AXIS, yaxis=dict(yaxis), showlegend=True)
    return Chart(key, title, {"data": data, "layout": axes}, note)


def _novelty(analysis: Mapping[str, Any]) -> str:
    pool = analysis["pool"]
    if isinstance(pool, str):
        return f"Novelty is not known: {pool}."
    lost = f", of which {pool['unreadable']:,} do not say theirs" if pool["unreadable"] else ""
    return f"Novelty is against {pool['combinations']:,} combinations in {pool['rows']:,} rows{lost}."


def _samples(analysis: Mapping[str, Any]) -> str:
    size = analysis["self_bleu"]["size"]
    model = f" Embedded by {analysis['embedding']}." if analysis["embedding"] else ""
    return f"Self-BLEU is of samples of exactly {size} attacks on {size} seeds, or of pairs on one seed.{model}"
