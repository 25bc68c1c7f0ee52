"""What the report shows beside curves, as tables, lines, points and bars that wandb and TensorBoard draw themselves.

Curves over steps they have already, as metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_magic.report.attack_charts import LIKENESS, SHARES, common, middle
from nemo_magic.report.conversations import NO_ATTACK, Strategies, sample_conversations
from nemo_magic.report.run_folder import RunFolder

MAX_CONVERSATIONS, MAX_BYTES = 200, 1_000_000
Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """A table. ``key``: its name in wandb and TensorBoard, as of all media."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Lines:
    """Lines in one chart. ``lines``: name → its x and its y."""

    key: str
    title: str
    x: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Points:
    """A scatter chart. ``points``: (x, y)."""

    key: str
    title: str
    x: str
    y: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bars:
    """A bar chart. ``bars``: name → its height."""

    key: str
    title: str
    value: str
    bars: Mapping[str, float]


Media = Table | Lines | Points | Bars


def collect_media(run: RunFolder, texts: bool) -> list[Media]:
    """The media of a run by now. Shares are 0..1. ``texts``: with the texts of conversations."""
    return [
        *_trade(run), *_crossplay(run), *_league(run), *_attacks(run), *_strategy_sweep(run), *_phases(run),
        *_alarms(run), *_conversations(run, texts),
    ]  # fmt: skip


def _trade(run: RunFolder) -> Iterator[Media]:
    asr, useful = (run.buckets.of(f"val_rollouts/{name}") for name in ("asr", "useful"))
    known = dict(zip(useful.steps, useful.means, strict=True))
    points = [(1 - a, known[step]) for step, a in zip(asr.steps, asr.means, strict=True) if step in known]
    if points:
        yield Points("trade", "Safety against usefulness", "attacks held off", "useful answers", points)


def _crossplay(run: RunFolder) -> Iterator[Media]:
    matrix = run.crossplay()
    if matrix is None:
        return
    rows: list[list[Cell]] = [[name, *row] for name, row in zip(matrix.attackers, matrix.asr, strict=True)]
    rows += [[name, *row] for name, row in matrix.benign_rows()]
    yield Table("crossplay", "Cross-play: ASR", ["attacker", *matrix.defenders], rows)
    worst = {name: matrix.worst_case(j) for j, name in enumerate(matrix.defenders)}
    yield Bars("worst_saved_attacker", "Worst saved attacker of each defender", "ASR", worst)


def _league(run: RunFolder) -> Iterator[Media]:
    league = run.league()
    if league is None:
        return
    asr = league["asr"]
    rows: list[list[Cell]] = [
        [attacker, defender, asr["matrix"][i][j], asr["low"][i][j], asr["high"][i][j]]
        for i, attacker in enumerate(league["attackers"])
        for j, defender in enumerate(league["defenders"])
    ]
    columns = ["attacker", "defender", "ASR", "low", "high"]
    yield Table("crossplay_intervals", "Cross-play, with intervals", columns, rows)


def _attacks(run: RunFolder) -> Iterator[Media]:
    analysis = run.attacks()
    if analysis is None or not analysis["attacks"]:
        return
    columns = ["strategy", "attacks", "share", "asr", "intent_lost", "first_step", "last_step", "in_pool"]
    rows = [[row[name] for name in columns] for row in analysis["strategies"]]
    yield Table("strategies", "What became of each strategy", columns, rows)
    bins, steps = analysis["bins"], [middle(one) for one in analysis["bins"]]
    mix = {name: (steps, [one["mix"].get(name, 0.0) for one in bins]) for name in common(analysis)}
    yield Lines("strategy_mix", "Strategies of the attacker", "step", mix)
    for key, title, lines in (
        ("attack_shares", "Hybrids, novelty, intent", SHARES),
        ("attack_likeness", "How alike attacks are", LIKENESS),
    ):
        points = {
            label: [(middle(one), one[name]) for one in bins if one[name] is not None] for name, label, *_ in lines
        }
        curves = {label: ([x for x, _ in xy], [y for _, y in xy]) for label, xy in points.items() if xy}
        if curves:
            yield Lines(key, title, "step", curves)


def _strategy_sweep(run: RunFolder) -> Iterator[Media]:
    sweep = run.strategies()
    if sweep is None:
        return
    start, end = sweep["start"]["asr"], sweep["end"]["asr"]
    rows: list[list[Cell]] = [[name, start[name], end.get(name)] for name in sorted(start, key=lambda n: -start[n])]
    columns = ["strategy", "first defender", "last defender"]
    yield Table("probe", "ASR of every strategy against the first and the last defender", columns, rows)


def _phases(run: RunFolder) -> Iterator[Media]:
    if run.phases.all:
        rows: list[list[Cell]] = [[p.index, p.learner, p.first, p.last, p.ended] for p in run.phases.all[-1000:]]
        columns = ["phase", "learns", "first step", "last step", "ended because"]
        yield Table("phases", "Phases and why they ended", columns, rows)


def _alarms(run: RunFolder) -> Iterator[Media]:
    columns = ["step", "alarm", "raised", "figures", "cause", "remedy"]
    rows = [[event["step"], event["alarm"], str(event["raised"]), *(str(event[name]) for name in columns[3:])]
            for event in run.alarms()]  # fmt: skip
    if rows:
        yield Table("alarms", "What the alarms said", columns, rows)


def _conversations(run: RunFolder, texts: bool) -> Iterator[Media]:
    rows = sample_conversations(run.path, MAX_CONVERSATIONS, MAX_BYTES).rows
    strategies = Strategies(run.config, run.attack_labels())
    columns = ["step", "seed", "label", "outcome", "strategy", "reward_attacker", "reward_defender"]
    table: list[list[Cell]] = []
    for row in rows:
        rewards = row["rewards"]
        cells: list[Cell] = [
            row["step"], row["id"], row["label"], row["outcome"], strategies.of(row), rewards.get("attacker"),
            rewards.get("defender"),
        ]  # fmt: skip
        if texts:
            turns = [
                NO_ATTACK if turn["response"] is None else f"{turn['rewrite']}\n→ {turn['response']}"
                for turn in row["turns"]
            ]
            cells += [row["seed"], "\n".join(turns)]
        table.append(cells)
    if table:
        columns += ["seed text", "conversation"] if texts else []
        yield Table("conversations", "Sampled conversations", columns, table)
