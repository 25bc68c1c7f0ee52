"""The end of a run: everyone who was kept against everyone, the strategy sweep, the picture and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Seed
from nemo_magic.league.cross_play import cross_play
from nemo_magic.league.strategy_sweep import sweep_strategies
from nemo_magic.report.game_picture import draw_game
from nemo_magic.report.records import CROSSPLAY_FILE, METRICS_FILE, PICTURE_FILE, STRATEGIES_FILE
from nemo_magic.rollout.engine import RolloutEngine
from nemo_magic.rollout.reward_manager import RewardManager
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
    """Measure on the ``test`` seeds, leave the results in the run's folder, and log them."""
    folder, seeds, main = run.folder, list(enumerate(test)), pair.world.is_main
    if cfg.game.crossplay.enabled:
        matrix = cross_play(pair, rollouts, rewards, snapshots, seeds, cfg)
        if main:
            matrix.save(folder / CROSSPLAY_FILE)
    if cfg.game.strategy_sweep == "sandbox":
        worst = sweep_strategies(pair, rollouts, rewards, snapshots, seeds, cfg)
        if main:
            (folder / STRATEGIES_FILE).write_text(json.dumps(worst, indent=1))
    if main:
        crossplay = folder / CROSSPLAY_FILE
        draw_game(folder / METRICS_FILE, crossplay if crossplay.exists() else None, folder / PICTURE_FILE)
        run.logger.write_final_report()
        print_summary(folder)
    pair.world.barrier()
