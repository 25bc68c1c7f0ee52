"""``nemo-magic cross-play RUN``: its words, its configuration, and the work of a rank. Imports torch in a rank only."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_magic.config import ConfigError, MagicConfig, compose
from nemo_magic.config.record import CONFIG_FILE
from nemo_magic.durable import write_durably
from nemo_magic.training.entrants import START, LeagueSeeds, attackers, defenders

RESULT, TABLE = "league.json", "league.txt"


def add_parser(commands: Any) -> None:
    """``nemo-magic cross-play``."""
    about = "play every attacker a run kept against every defender it kept, and say what the game has come to"
    parser = commands.add_parser(
        "cross-play",
        help=about,
        description=about,
        usage="nemo-magic cross-play RUN [--attacker [NAME=]PATH ...] [key=value ...]",
        epilog="Overrides are laid over the run's own configuration: game.crossplay.num_seeds=200, trainer.devices=1.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument(
        "--attacker",
        metavar="[NAME=]PATH",
        action="append",
        default=[],
        help="one more attacker: a folder of weights, or a table of seeds and rewrites",
    )
    parser.add_argument("--replicates", type=int, default=500, metavar="N", help="resampled matrices (500)")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="SHARE", help="of the intervals (0.95)")


def configured(args: argparse.Namespace) -> MagicConfig:
    """The run's configuration, overrides laid over it, writing to where the run is now.

    Raises:
        ConfigError: there is no run, or it cannot be played.
    """
    run: Path = args.run
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{run / CONFIG_FILE}: no such file; give the folder of a run of `nemo-magic train`")
    if args.replicates < 2:
        raise ConfigError(f"--replicates {args.replicates} must be at least 2")
    if not 0 < args.confidence < 1:
        raise ConfigError(f"--confidence {args.confidence} must be between 0 and 1")
    cfg = compose(CONFIG_FILE.removesuffix(".yaml"), args.overrides, str(run))
    if cfg.game.self_play and cfg.game.max_turns > 1:
        raise ConfigError(
            f"game.self_play=true with game.max_turns={cfg.game.max_turns}: an older attacker and an older defender "
            "cannot take turns in one model"
        )
    attackers(cfg, run, args.attacker)  # before anything is built
    return replace(cfg, exp_manager=replace(cfg.exp_manager, explicit_log_dir=str(run)))


def play(args: argparse.Namespace, cfg: MagicConfig) -> None:
    """The work of one rank: play what is missing; rank 0 writes and prints the standings."""
    from nemo_magic.actors.world import DeviceMemory
    from nemo_magic.data.seeds import load_seeds
    from nemo_magic.evaluation.standings import Axes, Settings, standings
    from nemo_magic.evaluation.standings_table import show
    from nemo_magic.training.arena import arena_of
    from nemo_magic.training.cast import assemble
    from nemo_magic.training.league import FOLDER, League
    from nemo_magic.training.referee import Referee
    from nemo_magic.training.timers import Timers

    run: Path = args.run
    folder = run / FOLDER
    starts = {path.parent.parent.name: path.parent for path in run.glob(f"snapshots/*/{START}/metadata.json")}
    rows, columns = attackers(cfg, run, args.attacker), defenders(cfg, run)
    seeds = LeagueSeeds.of(load_seeds(cfg.data), cfg.game.crossplay.num_seeds)
    with assemble(cfg, starts) as cast:
        world = cast.world

        def say(text: str) -> None:
            if world.is_main:
                print(text, flush=True)

        referee = Referee(world, cfg.judge, cfg.rewards, cfg.game.observe)
        try:
            referee.wait_ready(cfg.judge.give_up_after)
            say(f"{len(rows)} attackers × {len(columns)} defenders on {seeds}, judged by {referee.guard}")
            arena = arena_of(cfg, cast.speakers, Timers(DeviceMemory()))
            played = League(cfg, cast, arena, referee, seeds, folder, say).play(rows, columns)
        finally:
            referee.close()
        if world.is_main:
            axes = Axes(
                [one.name for one in rows],
                [one.name for one in columns],
                old=[one.name for one in rows if one.old],
                newest=rows[len(rows) - len(args.attacker) - 1].name,
            )
            settings = Settings(cfg.data.harmful_share, args.replicates, args.confidence, cfg.seed)
            found = {"judge": referee.guard, **standings(axes, played, settings)}
            write_durably(folder / RESULT, json.dumps(found, indent=1) + "\n")
            with (folder / TABLE).open("w", encoding="utf-8") as file:
                show(found, Console(file=file, width=200))
            show(found, Console())
            print(f"\n{folder / RESULT}")
        world.barrier()
