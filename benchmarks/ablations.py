"""One yardstick for all presets: ``python benchmarks/ablations.py RUN …``; the first run is the full game.

The last defender of every run against the same opponents on the test seeds: the warmed-up attacker, the full game's
attackers at their best, every strategy of the sandbox, and nobody. Where a run began with weights that no run before it
began with, these come first. ``make ablations`` makes the runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig, compose
from nemo_magic.data.seeds import load_seeds
from nemo_magic.game.episode import Role, Seed
from nemo_magic.game.metrics import rollout_metrics
from nemo_magic.judge.local import launch_local

if TYPE_CHECKING:
    from nemo_magic.training.arena import Arena, Attack
    from nemo_magic.training.cast import Cast
    from nemo_magic.training.referee import Referee

ATTACKS_PER_SEED = 4
COLUMNS = (
    "ASR, warmed-up attacker",
    "ASR, best attacker of the full game",
    "ASR, worst strategy",
    "ASR, mean strategy",
    "useful, warmed-up attacker",
    "useful, no attacker",
    "over-refusal, no attacker",
)


def main(words: Sequence[str]) -> None:
    runs = [Path(word) for word in words if "=" not in word]
    given = ["trainer.devices=1", *(f"actors.{role}.restore_from_path=null" for role in Role)]
    cfg = compose("magic_sandbox", [*given, *(word for word in words if "=" in word)])

    from nemo_magic.compat import cpu

    cpu.install()
    from nemo_magic.training.cast import assemble
    from nemo_magic.training.referee import Referee

    with (
        launch_local(cfg.judge) as judge,
        assemble(cfg) as cast,
        closing(Referee(cast.world, judge.config, cfg.rewards, cfg.game.observe)) as referee,
    ):
        seeds = list(enumerate(load_seeds(cfg.data).test))
        openings = dict(attacks(cfg, cast, seeds, runs[0]))
        print_row("run", *COLUMNS)
        print_row(*["---"] * (1 + len(COLUMNS)))
        begun: set[str | None] = set()
        for run in runs:
            name, weights = run.name.removeprefix("ablation-"), settings(run)["actors"]["defender"]["restore_from_path"]
            if weights not in begun:
                print_row(f"{name}, before the game", *measured(cfg, cast, referee, openings, run, "start"))
            begun.add(weights)
            print_row(name, *measured(cfg, cast, referee, openings, run, None))


def attacks(
    cfg: MagicConfig, cast: Cast, seeds: Sequence[tuple[int, Seed]], full: Path
) -> Iterator[tuple[str, list[Attack]]]:
    """Name → sampled openings of the warmed-up attacker and of every later one of the full game; and the bare seeds."""
    from nemo_magic.training.arena import Job, fixed_attacks
    from nemo_magic.training.crossplay import wearing

    jobs = [Job(seed, g, i) for g, seed in seeds for i in range(ATTACKS_PER_SEED)]
    for folder in sorted((full / "snapshots" / Role.ATTACKER).iterdir(), key=lambda f: f.name != "start"):
        with wearing(cast, Role.ATTACKER, Snapshot(folder.name, folder)):
            yield folder.name, plays(cfg, cast).attack(jobs, "ablations", 0)
    yield "none", fixed_attacks(lambda seed: seed.text, seeds)


def measured(
    cfg: MagicConfig, cast: Cast, referee: Referee, openings: Mapping[str, list[Attack]], run: Path, name: str | None
) -> list[str]:
    """The figures of a run's last defender, or of the one called ``name``, in the order of COLUMNS."""
    from nemo_magic.training.arena import GREEDY
    from nemo_magic.training.probe import disguised, strategy_rates

    with defending(cfg, cast, run, name) as arena:

        def figures(name: str) -> dict[str, float]:
            scored = referee.collect(referee.submit(arena.play(openings[name], "ablations", 0, GREEDY)))
            return rollout_metrics(scored).means()

        found = {name: figures(name) for name in openings}
        harmful = [(g, seed) for g, seed in enumerate(load_seeds(cfg.data).test) if seed.label.value == "harmful"]
        scored = referee.collect(referee.submit(arena.play(disguised(cfg.sandbox, harmful), "probe", 0, GREEDY)))
        rates = strategy_rates(cfg.sandbox, scored).means()
    later = [figure["asr"] for name, figure in found.items() if name.startswith("phase-")]
    values = [found["start"]["asr"], max(later), max(rates.values()), sum(rates.values()) / len(rates),
              found["start"]["useful"], found["none"]["useful"], found["none"]["over_refusal"]]  # fmt: skip
    return [f"{value:.2f}" for value in values]


@contextmanager
def defending(cfg: MagicConfig, cast: Cast, run: Path, name: str | None) -> Iterator[Arena]:
    """An arena in which the defender of ``run`` defends, as its own run lets it."""
    from nemo_magic.actors.generation import NativeGenerator
    from nemo_magic.actors.speaker import LocalSpeaker
    from nemo_magic.training.crossplay import wearing
    from nemo_magic.training.entrants import SHARED

    own = settings(run)
    kept = run / "snapshots" / (SHARED if own["game"]["self_play"] else Role.DEFENDER)
    folder = kept / name if name else last_self(kept)
    lengths = replace(
        cfg.actors.defender.length_params, max_length=own["actors"]["defender"]["length_params"]["max_length"]
    )
    options = replace(cfg.actors.defender, length_params=lengths)
    speaker = LocalSpeaker(cast.players[Role.DEFENDER].actor, NativeGenerator(cfg.generation), options)
    with wearing(cast, Role.DEFENDER, Snapshot(run.name, folder)):
        yield plays(cfg, replace(cast, speakers=cast.speakers | {Role.DEFENDER: speaker}), own["game"]["defender_cot"])


def settings(run: Path) -> dict[str, Any]:
    """The configuration that a run saved."""
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def last_self(kept: Path) -> Path:
    """The snapshot of a player's latest phase."""
    return max(kept.glob("phase-*"), key=lambda path: int(path.name.removeprefix("phase-")))


def plays(cfg: MagicConfig, cast: Cast, cot: bool = False) -> Arena:
    from nemo_magic.training.arena import Arena
    from nemo_magic.training.timers import Timers

    return Arena(cast.speakers, cfg.game.prompts, Timers(), seed=cfg.seed, group_size=1, defender_cot=cot)


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
