"""What the report shows, as tables, lines, points and bars that other places draw by themselves: wandb, TensorBoard.

Curves over steps are there already, as metrics; this is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_magic.report.attack_charts import LIKENESS, SHARES, common, middle
from nemo_magic.report.conversations import Strategies, sample
from nemo_magic.report.run_folder import RunFolder

MAX_CONVERSATIONS, MAX_BYTES = 200, 1_000_000
Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """``key`` is also the exhibit's name where it is shown."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Lines:
    """``lines``: name → its x and its y."""

    key: str
    title: str
    x: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Points:
    """``points``: (x, y)."""

    key: str
    title: str
    x: str
    y: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bars:
    """``bars``: name → its height."""

    key: str
    title: str
    value: str
    bars: Mapping[str, float]


Exhibit = Table | Lines | Points | Bars


def media(run: RunFolder, texts: bool) -> list[Exhibit]:
    """All that the run has to show by now. Shares are 0..1. ``texts``: the conversations' words too."""
    return [
        *_trade(run), *_crossplay(run), *_league(run), *_attacks(run), *_probe(run), *_phases(run), *_alarms(run),
        *_conversations(run, texts),
    ]  # fmt: skip


def _trade(run: RunFolder) -> Iterator[Exhibit]:
    asr, useful = (run.buckets.of(f"val_rollouts/{name}") for name in ("asr", "useful"))
    known = dict(zip(useful.steps, useful.means, strict=True))
    points = [(1 - a, known[step]) for step, a in zip(asr.steps, asr.means, strict=True) if step in known]
    if points:
        yield Points("trade", "Safety against usefulness", "attacks held off", "useful answers", points)


def _crossplay(run: RunFolder) -> Iterator[Exhibit]:
    matrix = run.crossplay()
    if matrix is None:
        return
    rows: list[list[Cell]] = [[name, *row] for name, row in zip(matrix.attackers, matrix.asr, strict=True)]
    rows += [[name, *row] for name, row in matrix.benign_rows()]
    yield Table("crossplay", "Cross-play: ASR", ["attacker", *matrix.defenders], rows)
    worst = {name: matrix.worst_case(j) for j, name in enumerate(matrix.defenders)}
    yield Bars("worst_saved_attacker", "Worst saved attacker of each defender", "ASR", worst)


def _league(run: RunFolder) -> Iterator[Exhibit]:
    found = run.league()
    if found is None:
        return
    asr = found["asr"]
    rows: list[list[Cell]] = [
        [attacker, defender, asr["matrix"][i][j], asr["low"][i][j], asr["high"][i][j]]
        for i, attacker in enumerate(found["attackers"])
        for j, defender in enumerate(found["defenders"])
    ]
    columns = ["attacker", "defender", "ASR", "low", "high"]
    yield Table("crossplay_intervals", "Cross-play, with intervals", columns, rows)


def _attacks(run: RunFolder) -> Iterator[Exhibit]:
    found = run.attacks()
    if found is None or not found["attacks"]:
        return
    columns = ["strategy", "attacks", "share", "asr", "intent_lost", "first_step", "last_step", "in_pool"]
    rows = [[row[name] for name in columns] for row in found["strategies"]]
    yield Table("strategies", "What became of each strategy", columns, rows)
    bins, steps = found["bins"], [middle(one) for one in found["bins"]]
    mix = {name: (steps, [one["mix"].get(name, 0.0) for one in bins]) for name in common(found)}
    yield Lines("strategy_mix", "Strategies of the attacker", "step", mix)
    for key, title, lines in (
        ("attack_shares", "Hybrids, novelty, intent", SHARES),
        ("attack_likeness", "How alike attacks are", LIKENESS),
    ):
        some = {words: [(middle(one), one[name]) for one in bins if one[name] is not None] for name, words, *_ in lines}
        drawn = {words: ([x for x, _ in points], [y for _, y in points]) for words, points in some.items() if points}
        if drawn:
            yield Lines(key, title, "step", drawn)


def _probe(run: RunFolder) -> Iterator[Exhibit]:
    found = run.strategies()
    if found is None:
        return
    start, end = found["start"]["asr"], found["end"]["asr"]
    rows: list[list[Cell]] = [[name, start[name], end.get(name)] for name in sorted(start, key=lambda n: -start[n])]
    columns = ["strategy", "first defender", "last defender"]
    yield Table("probe", "ASR of every strategy against the first and the last defender", columns, rows)


def _phases(run: RunFolder) -> Iterator[Exhibit]:
    if run.phases.all:
        rows: list[list[Cell]] = [[p.index, p.learner, p.first, p.last, p.ended] for p in run.phases.all[-1000:]]
        columns = ["phase", "learns", "first step", "last step", "ended because"]
        yield Table("phases", "Phases and why they ended", columns, rows)


def _alarms(run: RunFolder) -> Iterator[Exhibit]:
    columns = ["step", "alarm", "raised", "figures", "cause", "remedy"]
    rows = [[event["step"], event["alarm"], str(event["raised"]), *(str(event[name]) for name in columns[3:])]
            for event in run.alarms()]  # fmt: skip
    if rows:
        yield Table("alarms", "What the alarms said", columns, rows)


def _conversations(run: RunFolder, texts: bool) -> Iterator[Exhibit]:
    rows = sample(run.path, MAX_CONVERSATIONS, MAX_BYTES).rows
    strategies = Strategies(run.config, run.attack_labels())
    columns = ["step", "seed", "label", "outcome", "strategy", "reward_attacker", "reward_defender"]
    found: list[list[Cell]] = []
    for row in rows:
        rewards = row["rewards"]
        cells: list[Cell] = [
            row["step"], row["id"], row["label"], row["outcome"], strategies.of(row), rewards.get("attacker"),
            rewards.get("defender"),
        ]  # fmt: skip
        if texts:
            said = [f"{turn['rewrite']}\n→ {turn['response']}" for turn in row["turns"]]
            cells += [row["seed"], "\n".join(said)]
        found.append(cells)
    if found:
        columns += ["seed text", "conversation"] if texts else []
        yield Table("conversations", "Sampled conversations", columns, found)
