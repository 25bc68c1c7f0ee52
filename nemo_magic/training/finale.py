"""The end of a run: everyone who was kept against everyone, the strategies' probe, the picture and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Seed
from nemo_magic.report.game_picture import draw_game
from nemo_magic.report.records import CROSSPLAY_FILE, METRICS_FILE, PICTURE_FILE, STRATEGIES_FILE
from nemo_magic.training.arena import Arena
from nemo_magic.training.cast import Cast
from nemo_magic.training.crossplay import cross_play
from nemo_magic.training.observe import Observer
from nemo_magic.training.probe import probe_strategies
from nemo_magic.training.referee import Referee
from nemo_magic.training.summary import print_summary


def finale(
    cfg: MagicConfig,
    cast: Cast,
    arena: Arena,
    referee: Referee,
    snapshots: Mapping[str, Sequence[Snapshot]],
    test: Sequence[Seed],
    folder: Path,
    observer: Observer,
) -> None:
    """Measure on the ``test`` seeds, leave the results in ``folder``, and have ``observer`` show them."""
    seeds, main = list(enumerate(test)), cast.world.is_main
    if cfg.game.crossplay.enabled:
        matrix = cross_play(cast, arena, referee, snapshots, seeds, cfg)
        if main:
            matrix.save(folder / CROSSPLAY_FILE)
    if cfg.game.probe == "sandbox":
        worst = probe_strategies(cast, arena, referee, snapshots, seeds, cfg)
        if main:
            (folder / STRATEGIES_FILE).write_text(json.dumps(worst, indent=1))
    if main:
        crossplay = folder / CROSSPLAY_FILE
        draw_game(folder / METRICS_FILE, crossplay if crossplay.exists() else None, folder / PICTURE_FILE)
        observer.conclude()
        print_summary(folder)
    cast.world.barrier()
