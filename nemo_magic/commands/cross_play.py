"""``nemo-magic cross-play RUN``: every attacker of a run, and others, against every defender of it.

Games are kept in ``RUN/cross-play``, and played once. Only a rank imports torch.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from nemo_magic.commands.config_arguments import add_overrides, add_trust_weights, trust_overrides
from nemo_magic.commands.ranks import run_on_ranks
from nemo_magic.commands.run_folder import own_folder
from nemo_magic.config import ConfigError, MagicConfig, compose
from nemo_magic.config.inputs import refuse_missing
from nemo_magic.config.save_resolved import CONFIG_FILE
from nemo_magic.fsync_io import replace_durably, replacing
from nemo_magic.league.participants import START, LeagueSeeds, attackers, defenders
from nemo_magic.report.records import CROSS_PLAY_DIR

RESULT, TABLE = "league.json", "league.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, attackers from elsewhere, how precise the figures have to be, and overrides."""
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
    add_trust_weights(parser)
    add_overrides(parser, "laid over the run's own configuration: game.crossplay.num_seeds=200, trainer.devices=1")


def run(args: argparse.Namespace) -> int:
    """Play on the ranks of the run's configuration.

    Raises:
        ConfigError: there is no run, or it cannot be played.
        TrainingError, JudgeError, RemoteError: a game failed.
    """

    def work(cfg: MagicConfig) -> None:
        play(args, cfg)

    cfg, modules = load_config(args), ["nemo_magic.league.cross_play"]
    refuse_missing(cfg, "train", starts=False)
    with own_folder(cfg, args.run / CROSS_PLAY_DIR) as owner:
        return run_on_ranks(args, cfg, work, needs_judge=True, modules=modules, owner=owner)


def load_config(args: argparse.Namespace) -> MagicConfig:
    """The run's configuration with the overrides, writing to where the run is now.

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
    cfg = compose(CONFIG_FILE.removesuffix(".yaml"), [*args.overrides, *trust_overrides(args)], str(run))
    if cfg.game.self_play and cfg.game.max_turns > 1:
        raise ConfigError(
            f"game.self_play=true with game.max_turns={cfg.game.max_turns}: an older attacker and an older defender "
            "cannot take turns in one model"
        )
    attackers(cfg, run, args.attacker)  # before anything is built
    return replace(cfg, exp_manager=replace(cfg.exp_manager, explicit_log_dir=str(run)))


def play(args: argparse.Namespace, cfg: MagicConfig) -> None:
    """The work of one rank: play the missing games; rank 0 writes and prints the report.

    Raises:
        ConfigError: an attacker's table has no rewrite of any seed that is played.
        JudgeFailed, RemoteError: on every rank; the games that were played are kept.
    """
    from nemo_magic.actors.distributed import DeviceMemory
    from nemo_magic.data.seeds import load_seeds
    from nemo_magic.league.cross_play import CrossPlayRunner
    from nemo_magic.league.game_folder import GameFolder
    from nemo_magic.league.league_report import LeagueAxes, LeagueReportSettings, league_report
    from nemo_magic.league.league_table import print_league_report
    from nemo_magic.rollout.engine import build_rollout_engine
    from nemo_magic.rollout.reward_manager import RewardManager
    from nemo_magic.runtime.timers import Timers
    from nemo_magic.training.policies import build_policies

    folder = args.run / CROSS_PLAY_DIR
    starts = {path.parent.parent.name: path.parent for path in args.run.glob(f"snapshots/*/{START}/metadata.json")}
    rows, columns = attackers(cfg, args.run, args.attacker), defenders(cfg, args.run)
    seeds = LeagueSeeds.of(load_seeds(cfg.data), cfg.game.crossplay.num_seeds)
    notes = [one.report for one in rows if one.report] + [
        seeds.covered_by(one) for one in rows if one.rewrites is not None
    ]
    with (
        build_policies(cfg, starts) as pair,
        closing(RewardManager(pair.world, cfg.judge, cfg.rewards, cfg.game.extra_verdict_fields)) as reward_manager,
    ):
        world = pair.world

        def log(text: str) -> None:
            if world.is_main:
                print(text, flush=True)

        for note in notes:
            log(note)
        reward_manager.wait_ready(cfg.judge.give_up_after)
        log(f"{len(rows)} attackers × {len(columns)} defenders on {seeds}, judged by {reward_manager.guard}")
        rollouts = build_rollout_engine(cfg, pair.policies, Timers(DeviceMemory()))
        store = GameFolder(folder, world)
        games = CrossPlayRunner(cfg, pair, rollouts, reward_manager, seeds, store, log).play(rows, columns)
        if world.is_main:
            axes = LeagueAxes(
                [one.name for one in rows],
                [one.name for one in columns],
                old=[one.name for one in rows if one.old],
                newest=rows[len(rows) - len(args.attacker) - 1].name,
            )
            settings = LeagueReportSettings(cfg.data.harmful_share, args.replicates, args.confidence, cfg.seed)
            report = {"judge": reward_manager.guard, **league_report(axes, games, settings)}
            replace_durably(folder / RESULT, json.dumps(report, indent=1) + "\n")
            with replacing(folder / TABLE) as partial, partial.open("w", encoding="utf-8") as file:
                print_league_report(report, Console(file=file, width=200))
            print_league_report(report, Console())
            print(f"\n{folder / RESULT}")
        world.barrier()
