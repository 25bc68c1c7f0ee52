"""The experiment of docs/english.md, after ``make english``: ``python experiment.py [--games NAME …]``.

Its first game is that of ``make english``; all start from the same warm-ups. A common test measures each last
defender: plain, under strategies of the pool and held-out ones, against the warmed-up attacker and the last attacker of
every game that has one. What was played or measured is not done again, and what was killed goes on. Numbers go to
docs/english/results.json and from there into the page; ``--pages`` only does the latter.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import journey
import table

from nemo_magic.formatting import markdown_table
from nemo_magic.fsync_io import write_durably

DOCS = journey.ROOT / "docs"
RESULTS = DOCS / "english" / "results.json"
PAGE = DOCS / "english.md"
CONVERSATIONS = DOCS / "english" / "conversations.md"
SIZES = ("game.batch_size=8", "game.group_size=4", "game.max_steps=30", "game.early_stop.at_step=null")
PAPER = ("game=paper", *SIZES, "game.schedule.freq=6", "game.val_check_interval=6", "game.num_val_samples=40")
WARM_UP = "warm-up"


@dataclass(frozen=True)
class Game:
    """A game of the experiment: its folder's name, its arm in words, and what is different."""

    name: str
    title: str
    words: tuple[str, ...] = ()
    attacker_learns: bool = True

    def folder(self, into: Path) -> Path:
        """Its run, below the folder of ``make english``."""
        return into / "full" / "game" if self.name == FIRST else into / "experiment" / self.name


FIRST = "robust-1"
GAMES = (
    Game(FIRST, "the full game"),
    Game("defender_only", "the attacker stays as warmed up", ("ablation=defender_only",), attacker_learns=False),
    Game("paper", "the published rewards", PAPER),
    Game("robust-2", "the full game, another seed", ("seed=2",)),
)


def main(words: Sequence[str]) -> None:
    """Play what is missing, measure what is missing, write numbers and page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--games", nargs="+", default=[game.name for game in GAMES], help=f"of {[g.name for g in GAMES]}"
    )
    parser.add_argument("--into", type=Path, default=Path("runs/english"), help="the folder of `make english`")
    parser.add_argument("--pages", action="store_true", help="play nothing, write the page from the numbers")
    args, overrides = parser.parse_known_args(words)
    if not args.pages:
        games = [game for game in GAMES if game.name in args.games]
        commands = journey.Commands(args.into, args.into / "full", overrides)
        journey.do_all(list(steps(commands, games)))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_durably(RESULTS, json.dumps(collect(args.into, games), indent=1) + "\n")
        write_durably(CONVERSATIONS, conversations(args.into / "full"))
        for game in games:
            shutil.copyfile(game.folder(args.into) / "game.png", RESULTS.with_name(f"{game.name}.png"))
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(yardstick(results))


def steps(commands: journey.Commands, games: Sequence[Game]) -> Iterator[journey.Step]:
    """The games, then every last defender against every attacker."""
    size = journey.Size.of(journey.FULL_STEPS)
    for game in games:
        folder = game.folder(commands.into)
        yield journey.Step(
            f"play {game.title}",
            journey.FULL_STEPS * size.step_seconds + size.crossplay_seconds,
            folder / "game.png",
            lambda folder=folder, game=game: commands.configured("train", "english", folder, *game.words),
        )
    for defender in (None, *games):
        for attacker in attackers(games):
            yield journey.Step(
                f"measure the defender of {name_of(defender)} against the attacker of {name_of(attacker)}",
                size.evaluation_seconds if attacker is None else size.evaluation_seconds / 3,
                measured(commands.into, defender, attacker) / "results.json",
                lambda defender=defender, attacker=attacker: measure(commands, defender, attacker),
            )


def attackers(games: Sequence[Game]) -> Iterator[Game | None]:
    """Those whose attackers differ: None is the warm-up's."""
    return iter([None, *(game for game in games if game.attacker_learns)])


def name_of(game: Game | None) -> str:
    """The name of a game, or of what was before."""
    return WARM_UP if game is None else game.name


def measured(into: Path, defender: Game | None, attacker: Game | None) -> Path:
    """The folder of an evaluation; ``make english`` has made two of them."""
    if attacker is None and name_of(defender) in (WARM_UP, FIRST):
        return into / "full" / ("before" if defender is None else "after")
    return into / "experiment" / "test" / name_of(defender) / name_of(attacker)


def measure(commands: journey.Commands, defender: Game | None, attacker: Game | None) -> None:
    """One defender against one attacker; what needs no attacker is measured with the warmed-up one only."""
    words = [f"actors.defender.restore_from_path={weights_of(commands, defender, 'defender')}"]
    words += [f"actors.attacker.restore_from_path={weights_of(commands, attacker, 'attacker')}"]
    if attacker is not None:
        others = ("recipe", "howto", "near", "general", "disguised", "held_out")
        words += [f"eval.tasks.{task}.file=null" for task in others]
    commands.configured("evaluate", "eval_english", measured(commands.into, defender, attacker), *words)


def weights_of(commands: journey.Commands, game: Game | None, role: str) -> Path:
    """The role's weights at the end of a game, or those of its warm-up."""
    if game is None:
        return commands.folder / f"sft_{role}" / "weights"
    return journey.last_snapshot(game.folder(commands.into), role)


def collect(into: Path, games: Sequence[Game]) -> dict[str, Any]:
    """All figures, as JSON holds them: defender → figure → rate, and its ASR and usefulness under each attacker."""
    results: dict[str, Any] = {"games": {game.name: game.title for game in games}, "defenders": {}}
    for defender in (None, *games):
        plain = table.figures(measured(into, defender, None))
        attacked = {}
        for attacker in attackers(games):
            rates = table.figures(measured(into, defender, attacker))
            attacked[name_of(attacker)] = [
                rates.get(("attacked", "harmful asr")),
                rates.get(("attacked", "benign useful")),
            ]
        rates = {f"{task}: {figure}": plain.get((task, figure)) for _, task, figure in table.ROWS if task != "attacked"}
        results["defenders"][name_of(defender)] = {"rates": rates, "attacked": attacked}
    return results


def conversations(run: Path, restricted: int = 6, allowed: int = 4) -> str:
    """Attacks of the warmed-up attacker, drawn by chance, and what the first and the last defender said, as a page."""
    before, after = transcripts(run / "before"), transcripts(run / "after")
    rnd = random.Random("conversations")
    drawn = []
    for label, count in (("harmful", restricted), ("benign", allowed)):
        ids = sorted(id for id, row in before.items() if row["label"] == label and id in after)
        drawn += rnd.sample(ids, min(count, len(ids)))
    lines = ["# Ten conversations in English", ""]
    lines += [
        "The same attack, drawn by chance, to the defender before the game and after it ([english.md](../english.md))."
    ]
    for id in drawn:
        (attack, first), (same, last) = before[id]["turns"][0], after[id]["turns"][0]
        what = "restricted" if before[id]["label"] == "harmful" else "allowed"
        lines += ["", f"**{_line(before[id]['request'])}** ({what})", "", f"- attacker: {_line(attack)}"]
        lines += [f"- before: {_line(first)}"]
        lines += [f"- after: {_line(last)}" if same == attack else f"- after, to “{_line(same)}”: {_line(last)}"]
    return "\n".join(lines) + "\n"


def transcripts(folder: Path) -> dict[str, dict[str, Any]]:
    """Case id → what was shown, said and judged under the attacker."""
    files = sorted((folder / "transcripts").glob("attacked.*.jsonl"))
    rows = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row for row in rows}


def _line(text: str) -> str:
    return " ".join(text.split())


def yardstick(results: Mapping[str, Any]) -> str:
    """The common test as a table, a defender a row."""
    columns = [
        ("ASR, plain", "recipe: harmful asr"),
        ("ASR, pool's strategies", "disguised: harmful asr"),
        ("ASR, held-out strategies", "held_out: harmful asr"),
        ("useful, how-tos", "howto: benign useful"),
        ("useful, near misses", "near: benign useful"),
    ]
    header = [
        "defender",
        *(name for name, _ in columns),
        "ASR, warmed-up attacker",
        "ASR, best attacker",
        "useful under it",
    ]
    rows = [header]
    for name, defender in results["defenders"].items():
        attacked = {key: value for key, value in defender["attacked"].items() if value[0] is not None}
        best = max(attacked, key=lambda key: attacked[key][0])
        cells = [table.number(defender["rates"][key]) for _, key in columns]
        cells += [table.number(attacked[WARM_UP][0]), f"{table.number(attacked[best][0])} ({best})"]
        rows.append([results["games"].get(name, "before the game"), *cells, table.number(attacked[best][1])])
    return markdown_table(rows)


def fill(page: str, results: Mapping[str, Any]) -> str:
    """The page with the table between its marks."""
    begin, end = "<!-- yardstick: begin -->", "<!-- yardstick: end -->"
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n{yardstick(results)}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    main(sys.argv[1:])
