"""The end of a run: everyone who was kept against everyone, the strategy sweep, the picture and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_magic.actors.distributed import World
from nemo_magic.actors.rank_group import run_on_all
from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.fsync_io import replace_durably
from nemo_magic.game.episode import Seed
from nemo_magic.league.cross_play import cross_play
from nemo_magic.league.strategy_sweep import sweep_strategies
from nemo_magic.report.game_picture import draw_game
from nemo_magic.report.records import CROSSPLAY_FILE, METRICS_FILE, PICTURE_FILE, STRATEGIES_FILE
from nemo_magic.rollout.engine import RolloutEngine
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.runtime.errors import TrainingError
from nemo_magic.tracking.run_summary import print_summary
from nemo_magic.training.policies import PolicyPair
from nemo_magic.training.run import Run


def final_evaluation(
    cfg: MagicConfig,
    pair: PolicyPair,
    rollouts: RolloutEngine,
    rewards: RewardManager,
    snapshots: Mapping[str, Sequence[Snapshot]],
    test: Sequence[Seed],
    run: Run,
) -> None:
    """Measure on the ``test`` seeds, leave the results in the run's folder, and log them.

    Raises:
        TrainingError: on every rank, where a result cannot be written. Pictures and the summary fail aloud only.
    """
    folder, seeds, main = run.folder, list(enumerate(test)), pair.world.is_main
    if cfg.game.crossplay.enabled:
        matrix = cross_play(pair, rollouts, rewards, snapshots, seeds, cfg)
        _write(pair.world, folder / CROSSPLAY_FILE, matrix.to_json())
    if cfg.game.strategy_sweep == "sandbox":
        worst = sweep_strategies(pair, rollouts, rewards, snapshots, seeds, cfg)
        _write(pair.world, folder / STRATEGIES_FILE, json.dumps(worst, indent=1))
    if main:
        crossplay = folder / CROSSPLAY_FILE
        try:
            draw_game(folder / METRICS_FILE, crossplay if crossplay.exists() else None, folder / PICTURE_FILE)
        except (OSError, ValueError) as error:
            run.note(f"{folder / PICTURE_FILE} is not drawn: {type(error).__name__}: {error}")
        run.logger.write_final_report()
        try:
            print_summary(folder)
        except (OSError, ValueError) as error:
            run.note(f"there is no summary: {type(error).__name__}: {error}")
    pair.world.barrier()


def _write(world: World, path: Path, text: str) -> None:
    """A result, from rank 0. Raises TrainingError on every rank where it cannot be written."""

    def write() -> None:
        if world.is_main:
            replace_durably(path, text)

    run_on_all(
        world,
        write,
        lambda why: TrainingError(f"{path}: {why}. All steps are saved; the same command plays the rest again"),
        OSError,
    )
