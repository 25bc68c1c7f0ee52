"""One or several runs as one self-contained HTML page: plotly.js inside, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nemo_magic.formatting import MISSING, percent
from nemo_magic.fsync_io import replace_durably
from nemo_magic.game.alarms import AlarmsConfig
from nemo_magic.game.payoff import CrossPlay
from nemo_magic.report import charts, evaluation_charts, evaluation_page, strategy_charts
from nemo_magic.report.attack_charts import attack_charts
from nemo_magic.report.charts import Chart
from nemo_magic.report.conversations import ConversationSample, Strategies, sample_conversations, sandbox_of
from nemo_magic.report.evaluation_folder import EvaluationFolder
from nemo_magic.report.run_folder import RunFolder

ROLES = ("attacker", "defender")
ALARMS = tuple(one.name for one in fields(AlarmsConfig))
MAX_CONVERSATIONS, MAX_TEXT_BYTES = 2000, 3_000_000
"""Of all runs of a page together."""
_MAX_PHASES = 60
_CARDS = (
    ("asr", "ASR, held out", "down"),
    ("over_refusal", "over-refusal", "down"),
    ("useful", "useful answers", "up"),
    ("intent_preserved", "intent kept", ""),
)


@dataclass(frozen=True)
class Card:
    """A figure of the overview. ``mood``: good, bad, or nothing."""

    label: str
    value: str
    note: str
    mood: str = ""


@dataclass
class Section:
    """A part of the page: a heading and, for each run (or for all together: ""), its charts."""

    key: str
    title: str
    charts: list[tuple[str, Chart]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    def add(self, run: str, charts: Chart | Sequence[Chart] | None, otherwise: str) -> None:
        """Add a run's charts; ``otherwise``: the text where there is none."""
        new = [charts] if isinstance(charts, Chart) else list(charts or ())
        self.charts += [(run, chart) for chart in new]
        if not new:
            self.missing.append((run, otherwise))

    def groups(self) -> list[tuple[str, list[Chart], list[str]]]:
        """Run → its charts and what is missing, in order."""
        names = dict.fromkeys([run for run, _ in self.charts] + [run for run, _ in self.missing])
        return [
            (name, [c for run, c in self.charts if run == name], [t for run, t in self.missing if run == name])
            for name in names
        ]


def render(runs: Sequence[RunFolder], evaluations: Sequence[EvaluationFolder] = ()) -> str:
    """The page of runs, evaluations or both, as text.

    Raises:
        ValueError: a file of a run is no such file.
    """
    samples, rows = _conversations(runs)
    sections = [*evaluation_sections(evaluations), *(_sections(runs, rows) if runs else ())]
    figures: dict[str, Any] = {}
    for section in sections:
        for number, (_, chart) in enumerate(section.charts):
            figures[f"{section.key}-{number}"] = _as_text(chart.figure)
    texts = {name: _asset(name) for name in ("report.css", "report.js", "listing.js")}
    environment = Environment(
        loader=PackageLoader("nemo_magic.report", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda share: percent(share, "\u00a0%")
    return environment.get_template("report.html").render(
        title=" · ".join([*(run.name for run in runs), *(one.name for one in evaluations)]),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[_overview(run) for run in runs],
        sections=_numbered(sections),
        alarms=[(run.name, list(run.alarms())) for run in runs],
        attacks=[(run.name, run.attacks()) for run in runs],
        phases=[(run.name, run.phases.all[-_MAX_PHASES:], len(run.phases.all)) for run in runs],
        differences=config_differences([run.config for run in runs]),
        names=[run.name for run in runs],
        samples=list(zip([run.name for run in runs], samples, strict=True)),
        outcomes=sorted({row["outcome"] for row in rows}),
        strategies=sorted({row["strategy"] for row in rows if row["strategy"]}),
        count=len(rows),
        figures=_json(figures),
        policy=_policy([get_plotlyjs(), texts["listing.js"], texts["report.js"], _asset("cases.js")]),
        conversations=_json(rows),
        css=Markup(texts["report.css"]),
        js=Markup(texts["report.js"]),
        listing_js=Markup(texts["listing.js"]),
        plotly=Markup(get_plotlyjs()),
        **_evaluation_variables(evaluations),
    )


def write(runs: Sequence[RunFolder], out: str | Path, evaluations: Sequence[EvaluationFolder] = ()) -> Path:
    """Write the page to ``out`` and return its path; a reader sees a whole page or the one before."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, render(runs, evaluations))
    return path


def evaluation_sections(evaluations: Sequence[EvaluationFolder]) -> Iterator[Section]:
    """The sections of evaluations' charts; none for no evaluation."""
    for key, title, draw in (
        ("intervals", "Rates and intervals", evaluation_charts.forests),
        ("attempts", "By attempts", evaluation_charts.curves),
        ("methods", "By attack method", partial(evaluation_charts.parts, by="by_method")),
        ("categories", "By category", partial(evaluation_charts.parts, by="by_category")),
    ):
        if evaluations and (some := draw(evaluations)):
            section = Section(key, title)
            section.add("", some, "")
            yield section


def _evaluation_variables(evaluations: Sequence[EvaluationFolder]) -> dict[str, Any]:
    """The variables of the page's templates for evaluations, beside their charts."""
    if not evaluations:
        return {"evaluations": []}
    sample = evaluation_page.sample_examples(evaluations, MAX_CONVERSATIONS, MAX_TEXT_BYTES)
    return {
        "evaluations": [evaluation_page.overview(one) for one in evaluations],
        "figures_table": evaluation_page.table(evaluations),
        "splits": [
            (title, evaluation_page.splits(evaluations, by))
            for title, by in (("By attack method", "by_method"), ("By category", "by_category"))
        ],
        "capability": evaluation_page.capability(evaluations),
        "evaluation_differences": config_differences([one.config for one in evaluations]),
        "cases": sample,
        "case_rows": _json(sample.rows),
        "case_tasks": list(dict.fromkeys(row["task"] for row in sample.rows)),
        "case_outcomes": sorted(
            {outcome for row in sample.rows for outcomes in row["came"] for outcome, _ in outcomes}
        ),
        "cases_js": Markup(_asset("cases.js")),
    }


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys that are not equal in all configurations, with each one's value ("–" where it has none)."""
    flat = [dict(_flat(config)) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, MISSING) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value, ensure_ascii=False, default=str)


def _conversations(runs: Sequence[RunFolder]) -> tuple[list[ConversationSample], list[dict[str, Any]]]:
    samples, rows = [], []
    for number, run in enumerate(runs):
        sample = sample_conversations(run.path, MAX_CONVERSATIONS // len(runs), MAX_TEXT_BYTES // len(runs))
        strategies = Strategies(run.config, run.attack_labels())
        for row in sample.rows:
            row |= {"run": number, "strategy": strategies.of(row)}
            del row["place"]
        samples.append(sample)
        rows += sample.rows
    return samples, rows


def _sections(runs: Sequence[RunFolder], rows: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    one_by_one = [Section(*named) for named in (
        ("game", "The game"), ("crossplay", "Cross-play"), ("strategies", "Strategies"), ("rewards", "Rewards"),
        ("learner", "The learner"), ("judge", "The judge"), ("time", "Time"), ("alarms", "Alarms"),
    )]  # fmt: skip
    for number, run in enumerate(runs):
        name, buckets, matrix = run.name, run.buckets, run.crossplay()
        own_rows = [row for row in rows if row["run"] == number]
        charts_of: dict[str, tuple[Sequence[Chart | None], str]] = {
            "game": ([charts.game(buckets, run.phases.all)], "No share was measured yet."),
            "crossplay": (_crossplay(run, matrix), "No cross-play yet: it is played at the end of a run "
                          "(game.crossplay.enabled), or by nemo-magic cross-play."),
            "strategies": (_strategies(run, strategy_charts.mix(own_rows) if sandbox_of(run.config) else None),
                           "No strategy is known: outside the sandbox, nemo-magic analyse has a model name them."),
            "rewards": ([charts.rewards(buckets, role) for role in ROLES], "No reward was paid yet."),
            "learner": (charts.learner(buckets), "No update was made yet."),
            "judge": (charts.judge(buckets), "Nothing was judged yet."),
            "time": (charts.times(buckets), "No step was timed yet."),
            "alarms": ([charts.alarms(buckets, ALARMS)], "No alarm was watched: the windows (alarms.<name>.window) "
                       "are not full yet, or what they watch is not measured."),
        }  # fmt: skip
        for section in one_by_one:
            some, otherwise = charts_of[section.key]
            section.add(name, [chart for chart in some if chart], otherwise)
    if len(runs) > 1:
        beside = Section("beside", "Runs side by side")
        beside.add("", strategy_charts.side_by_side(runs), "No run was validated yet.")
        yield beside
    yield one_by_one[0]
    trade = Section("trade", "Safety and usefulness")
    trade.add("", strategy_charts.trade(runs), "Usefulness is not judged: add helpful to game.extra_verdict_fields.")
    yield trade
    yield from one_by_one[1:]


def _crossplay(run: RunFolder, matrix: CrossPlay | None) -> list[Chart | None]:
    drawn: list[Chart | None] = []
    if matrix is not None:
        drawn += [charts.cross_play(matrix), charts.worst_cases(matrix)]
    league = run.league()
    if league is not None:
        asr = league["asr"]
        played = CrossPlay(league["attackers"], league["defenders"], asr["matrix"])
        drawn.append(charts.cross_play(played, asr["low"], asr["high"], "Cross-play, with intervals"))
    return drawn


def _strategies(run: RunFolder, decoded: Chart | None) -> list[Chart | None]:
    attacks, sweep = run.attacks(), run.strategies()
    charts = [decoded, *(attack_charts(attacks, mix=decoded is None) if attacks else [])]
    return [*charts, strategy_charts.strategy_sweep(sweep) if sweep else None]


def _overview(run: RunFolder) -> dict[str, Any]:
    first, last = run.first_validation, run.last_validation
    cards = []
    for name, label, better in _CARDS:
        before, now = ((one.metrics.get(f"val_rollouts/{name}") if one else None) for one in (first, last))
        if now is None or before is None:
            continue
        worse = (now > before + 0.05) if better == "down" else (now < before - 0.05) if better == "up" else False
        note = "" if first is last else f"from {percent(before)} %"
        cards.append(Card(label, percent(now, " %"), note, "bad" if worse else ""))
    matrix, strategies, league = run.crossplay(), run.strategies(), run.league()
    if matrix is not None:
        cards.append(
            Card("worst saved attacker", percent(matrix.worst_case(), " %"), f"against {matrix.defenders[-1]}")
        )
    if league is not None:
        one = league["asr"]["last_defender"]["exploitability"]
        note = f"of the last defender, {percent(one['low'])} to {percent(one['high'])}"
        cards.append(Card("exploitability", percent(one["value"], " %"), note))
    if strategies is not None:
        cards.append(Card("worst strategy", percent(strategies["end"]["worst"], " %"), "of all there are"))
    active = _active_alarms(run.alarms())
    ever = len({event["alarm"] for event in run.alarms()})
    mood = "bad" if active else ""
    cards.append(Card("alarms", f"{len(active)} now", ", ".join(active) or f"{ever} raised in total", mood))
    return {"name": run.name, "state": run.state, "path": str(run.path), "cards": cards, "rows": run.rows,
            "step": run.last.step if run.last else 0}  # fmt: skip


def _active_alarms(events: Sequence[Mapping[str, Any]]) -> list[str]:
    state = {event["alarm"]: event["raised"] for event in events}
    return [name.replace("_", " ") for name, raised in state.items() if raised]


def _numbered(sections: Sequence[Section]) -> list[dict[str, Any]]:
    numbered = []
    for section in sections:
        ids = {id(chart): f"{section.key}-{number}" for number, (_, chart) in enumerate(section.charts)}
        groups = [
            {"run": run, "missing": missing, "charts": [(ids[id(chart)], chart) for chart in some]}
            for run, some, missing in section.groups()
        ]
        numbered.append({"key": section.key, "title": section.title, "groups": groups})
    return numbered


_TEMPLATES = ("hovertemplate", "texttemplate")


def _as_text(value: Any, key: str = "") -> Any:
    """A figure whose labels are text to plotly, which otherwise takes tags in them for markup. A line break stays one.

    Templates are ours: names come into them as ``%{fullData.name}`` and the like.
    """
    if isinstance(value, Mapping):
        return {name: _as_text(one, name) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(one, key) for one in value]
    if isinstance(value, str) and key not in _TEMPLATES:
        text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return "<br>".join(text.splitlines())
    return value


def _policy(scripts: Sequence[str]) -> str:
    """The page's Content-Security-Policy: it runs its own scripts, and loads nothing from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    own = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {own}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> Markup:
    """JSON in which no text can end the script element around it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _asset(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")
