"""The end of a run: everyone who was kept against everyone, the strategies' probe, the picture and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Seed
from nemo_magic.league.cross_play import cross_play
from nemo_magic.league.strategy_sweep import sweep_strategies
from nemo_magic.report.game_picture import draw_game
from nemo_magic.report.records import CROSSPLAY_FILE, METRICS_FILE, PICTURE_FILE, STRATEGIES_FILE
from nemo_magic.rollout.engine import RolloutEngine
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.tracking.metric_logger import MetricLogger
from nemo_magic.tracking.run_summary import print_summary
from nemo_magic.training.policies import PolicyPair


def final_evaluation(
    cfg: MagicConfig,
    pair: PolicyPair,
    rollouts: RolloutEngine,
    reward_manager: RewardManager,
    snapshots: Mapping[str, Sequence[Snapshot]],
    test: Sequence[Seed],
    folder: Path,
    logger: MetricLogger,
) -> None:
    """Measure on the ``test`` seeds, leave the results in ``folder``, and have ``logger`` show them."""
    seeds, main = list(enumerate(test)), pair.world.is_main
    if cfg.game.crossplay.enabled:
        matrix = cross_play(pair, rollouts, reward_manager, snapshots, seeds, cfg)
        if main:
            matrix.save(folder / CROSSPLAY_FILE)
    if cfg.game.strategy_sweep == "sandbox":
        worst = sweep_strategies(pair, rollouts, reward_manager, snapshots, seeds, cfg)
        if main:
            (folder / STRATEGIES_FILE).write_text(json.dumps(worst, indent=1))
    if main:
        crossplay = folder / CROSSPLAY_FILE
        draw_game(folder / METRICS_FILE, crossplay if crossplay.exists() else None, folder / PICTURE_FILE)
        logger.conclude()
        print_summary(folder)
    pair.world.barrier()
