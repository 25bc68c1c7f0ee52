"""One table of an evaluation, for people (Markdown), papers (LaTeX) and programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_magic.data.catalogue import Figure
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.capability import Capability, capability_json, capability_table
from nemo_magic.evaluation.metrics import MetricResult, Rate
from nemo_magic.evaluation.published import published_row
from nemo_magic.evaluation.statistics import PairedComparison, compare_pairs
from nemo_magic.formatting import MISSING, markdown_table, percent
from nemo_magic.fsync_io import replace_durably

JSON_FILE, MARKDOWN_FILE, LATEX_FILE, OUTCOMES_FILE = "results.json", "results.md", "results.tex", "outcomes.json"

Outcomes = Mapping[str, Mapping[str, Mapping[str, tuple[str, bool | None]]]]
"""Task → figure → unit → digest of what the unit shows, and its outcome."""


@dataclass(frozen=True)
class Results:
    """What an evaluation measured.

    ``notes``: what a reader has to know of the files and of how they were played. ``baseline``: name and outcomes of
    the evaluation to compare with. ``capability``: the figures of lm-evaluation-harness.
    """

    title: str
    model: str | None
    guard: str
    metrics: Sequence[MetricResult]
    notes: Sequence[str] = ()
    baseline: tuple[str, Outcomes] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    capability: Sequence[Capability] = ()

    def save(self, folder: Path) -> None:
        """Write all files to ``folder``; a reader sees whole ones only."""
        outcomes = {
            task: {
                m.figure.name: {unit: [m.digests[unit], outcome] for unit, outcome in m.outcomes.items()}
                for m in self.metrics
                if m.task == task
            }
            for task in dict.fromkeys(m.task for m in self.metrics)
        }
        for name, text in (
            (OUTCOMES_FILE, json.dumps(outcomes, ensure_ascii=False)),
            (JSON_FILE, json.dumps(self.to_json(), indent=2, ensure_ascii=False)),
            (MARKDOWN_FILE, self.to_markdown()),
            (LATEX_FILE, self.to_latex()),
        ):
            replace_durably(folder / name, text.rstrip("\n") + "\n")

    def to_json(self) -> dict[str, Any]:
        """Everything, rates in 0 to 1."""
        return {
            "title": self.title,
            "model": self.model,
            "guard": self.guard,
            "settings": dict(self.settings),
            "baseline": self.baseline[0] if self.baseline else None,
            "notes": list(self.notes),
            "capability": capability_json(self.capability),
            "figures": [
                {
                    "task": m.task,
                    "figure": m.figure.name,
                    "metric": m.figure.metric.value,
                    "higher_is_better": m.figure.metric.higher_is_better,
                    **_rate(m.rate),
                    "published": self._published(m.figure),
                    "against_baseline": _comparison(self.compare(m)),
                    "by_category": {name: _rate(rate) for name, rate in m.by_category.items()},
                    "by_method": {name: _rate(rate) for name, rate in m.by_method.items()},
                    "curve": {str(k): _rate(rate) for k, rate in m.curve.items()},
                }
                for m in self.metrics
            ],
        }

    def to_markdown(self) -> str:
        """The table, what is to be known of it, and each figure by attack method and by category."""
        lines = [f"# {self.title}", "", f"Judged by {self.guard or 'nobody'}. Per cent, 95 % intervals.", ""]
        lines.append(markdown_table(self._table()))
        if self.capability:
            lines += ["", "## General capability, by lm-evaluation-harness", ""]
            lines.append(markdown_table(capability_table(self.capability)))
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        for m in self.metrics:
            if m.curve:
                rows = [[str(k), *_cells(rate)] for k, rate in m.curve.items()]
                lines += ["", f"## {m.task}: {m.figure.name}, by attempts", ""]
                lines.append(markdown_table([["attempts", "%", "interval", "cases", "unknown"], *rows]))
        for name, of in (("method", "by_method"), ("category", "by_category")):
            for m in self.metrics:
                parts: Mapping[str, Rate] = getattr(m, of)
                if len(parts) > 1:
                    rows = [[part, *_cells(rate)] for part, rate in parts.items()]
                    lines += ["", f"## {m.task}: {m.figure.name}, by {name}", ""]
                    lines.append(markdown_table([[name, "%", "interval", "cases", "unknown"], *rows]))
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """The table alone, for ``\\input``; wants booktabs."""
        header, *rows = [[_tex(cell) for cell in row] for row in self._table()]
        lines = [f"\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}", "\\toprule", " & ".join(header) + " \\\\"]
        lines += ["\\midrule", *(" & ".join(row) + " \\\\" for row in rows), "\\bottomrule", "\\end{tabular}"]
        return "\n".join(lines) + "\n"

    def compare(self, result: MetricResult) -> PairedComparison | None:
        """The figure against the baseline, on units that showed the same; None where the baseline has not measured
        it."""
        if self.baseline is None:
            return None
        before = self.baseline[1].get(result.task, {}).get(result.figure.name)
        if before is None:
            return None
        baseline = {unit: outcome for unit, (digest, outcome) in before.items() if result.digests.get(unit) == digest}
        return compare_pairs(result.outcomes, baseline)

    def _table(self) -> list[list[str]]:
        published = any(self._published(m.figure) is not None for m in self.metrics)
        header = ["task", "figure", "%", "interval", "cases", "unknown"]
        header += ["published"] if published else []
        header += ["baseline Δ", "mid-p", "pairs"] if self.baseline else []
        rows = []
        for m in self.metrics:
            arrow = "↑" if m.figure.metric.higher_is_better else "↓"
            row = [m.task, f"{m.figure.name} {arrow}", *_cells(m.rate)]
            if published:
                row.append(percent(self._published(m.figure)))
            if self.baseline:
                pair = self.compare(m)
                row += (
                    [f"{100 * pair.difference:+.1f}", f"{pair.mid_p:.3g}", str(pair.pairs)]
                    if pair is not None and pair.pairs
                    else [MISSING] * 3
                )
            rows.append(row)
        return [header, *rows]

    def _published(self, figure: Figure) -> float | None:
        return published_row(self.model).get(figure.published or "")


def read_outcomes(folder: str | Path) -> Outcomes:
    """The outcomes that ``Results.save`` left. Raises DataError where there are none."""
    path = Path(folder) / OUTCOMES_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {
            task: {
                figure: {unit: (digest, outcome) for unit, (digest, outcome) in units.items()}
                for figure, units in figures.items()
            }
            for task, figures in values.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"eval.baseline={folder}: it has no outcomes of an evaluation in {path}: {error}") from error


def _rate(rate: Rate) -> dict[str, Any]:
    return {"rate": rate.value, **asdict(rate)}


def _comparison(pair: PairedComparison | None) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {**asdict(pair), "difference": pair.difference, "exact_p": pair.exact, "mid_p": pair.mid_p}


def _cells(rate: Rate) -> list[str]:
    interval = MISSING if rate.interval is None else "{}–{}".format(*map(percent, rate.interval))
    return [percent(rate.value), interval, str(rate.count), str(rate.unknown)]


_TEX = str.maketrans(
    {
        "\\": "\\textbackslash{}", "%": "\\%", "&": "\\&", "_": "\\_", "#": "\\#", "$": "\\$", "{": "\\{", "}": "\\}",
        "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--", "↑": "$\\uparrow$", "↓": "$\\downarrow$",
        "Δ": "$\\Delta$",
    }
)  # fmt: skip


def _tex(text: str) -> str:
    return text.translate(_TEX)
