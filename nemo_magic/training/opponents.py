"""Whom a learner meets: the pool's draw, and past selves in the place of the opponent that does not learn.

In a defender phase of one turn every group of a step may have another attacker: each attacker that was drawn writes its
share of the whole phase at once, and is not needed after that. Where the opponent plays on during the step (it answers,
or it attacks for several turns), a step has one opponent: weights are changed once a step, and the batch stays whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.metrics import Ratios, Scored, attack_succeeded
from nemo_magic.game.pool import Pool, PoolFull
from nemo_magic.game.schedule import Schedule
from nemo_magic.league.participants import SHARED
from nemo_magic.rollout.engine import AttackPrompt, RolloutEngine
from nemo_magic.runtime.checkpoint_paths import FOLDER as CHECKPOINTS
from nemo_magic.runtime.checkpoint_paths import STATE, committed_checkpoints
from nemo_magic.runtime.errors import TrainingError

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.snapshots import Snapshot, SnapshotCache
    from nemo_magic.training.policies import PolicyPair


def clear_out(world: World, run: Path, snapshots: Mapping[str, Sequence[Snapshot]]) -> None:
    """Remove the weights of whom the pool let go, unless a checkpoint that can be gone on from knows them."""
    if world.is_main:
        known = {(owner, kept.name) for owner, taken in snapshots.items() for kept in taken}
        for path in committed_checkpoints(run / CHECKPOINTS):
            saved = json.loads((path / STATE).read_text(encoding="utf-8"))["snapshots"]
            known |= {(owner, name) for owner, names in saved.items() for name in names}
        for folder in (run / "snapshots").glob("*/[!.]*"):
            if (folder.parent.name, folder.name) not in known:
                shutil.rmtree(folder)
    world.barrier()


class Opponents:
    """``pool`` is part of the game's state; ``snapshots``: role → its kept selves, as the run has them at any time. All
    methods are for all ranks."""

    def __init__(
        self,
        cfg: MagicConfig,
        pair: PolicyPair,
        rollouts: RolloutEngine,
        snapshots: Mapping[str, Sequence[Snapshot]],
        snapshot_cache: SnapshotCache,
    ) -> None:
        self.pool = Pool()
        self._cfg = cfg
        self._pair = pair
        self._rollouts = rollouts
        self._snapshots = snapshots
        self._snapshot_cache = snapshot_cache

    @property
    def _only_latest(self) -> bool:
        return self._cfg.game.pool.draw == "latest"

    def add(self, role: Role, snapshot: Snapshot, phase: int) -> list[tuple[Role, str]]:
        """A self of ``role`` was kept; returns whom the pool let go for it.

        Raises:
            TrainingError: on every rank, when the disk budget is too small for any pool.
        """
        if SHARED in self._snapshots:
            return []  # one player has no pool of its own
        self._snapshot_cache.evict(snapshot)
        # Without torch's index, which has the folder's name in it: the pool's state must not depend on where a run is.
        files = [path for path in snapshot.folder.rglob("*") if path.is_file() and path.name != ".metadata"]
        size = self._pair.world.all_gather(sum(path.stat().st_size for path in files))[0]
        try:
            self.pool, evicted = self.pool.join(self._cfg.game.pool, role, snapshot.name, phase, size)
        except PoolFull as error:
            raise TrainingError(str(error)) from error
        for of_role, name in evicted:
            self._snapshot_cache.evict(self._snapshot(of_role, name))
        return evicted

    def draw(self, schedule: Schedule) -> None:
        """A phase begins: who will it be played against?"""
        if not self._only_latest:
            role = schedule.learner.opponent
            self.pool = self.pool.drawn(self._cfg.game.pool, role, self._cfg.seed, schedule.phase)

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        """As ``RolloutEngine.defender_openings``, each share by the attacker that was drawn for it."""
        if self._only_latest:
            return self._rollouts.defender_openings(seeds)
        openings: dict[int, list[AttackPrompt]] = {step: [] for step in seeds}
        # Everyone in the same order, also where this rank has no share: loading weights is for all ranks.
        for name in dict.fromkeys(self.pool.slots):
            share = {
                step: [(group, seed) for group, seed in pairs if self._opponent(Role.DEFENDER, step, group) == name]
                for step, pairs in seeds.items()
            }
            with self._use_opponent(Role.ATTACKER, name):
                for step, attacks in self._rollouts.defender_openings(share).items():
                    openings[step] += attacks
        return openings

    @contextmanager
    def opponent_for(self, learner: Role, step: int) -> Iterator[None]:
        """Within the context the step's opponent is there, where it has to play on."""
        if self._only_latest or not self._plays_on(learner):
            yield
        else:
            with self._use_opponent(learner.opponent, self._opponent(learner, step, 0)):
                yield

    def update_win_rates(self, learner: Role, step: int, scored: Sequence[Scored]) -> dict[str, float]:
        """Who won how often, for the next draw and for the record: ASR on harmful seeds by opponent."""
        if self._only_latest:
            return {}
        found = Ratios()
        for episode, verdict, _ in scored:
            success = None if verdict is None else attack_succeeded(verdict)
            # A seed that was shown as it is was nobody's attack.
            if episode.seed.label is Label.HARMFUL and success is not None and episode.turns[0].attack is not None:
                found.add(self._opponent(learner, step, episode.group), success)
        total = Ratios.merged(self._pair.world.gather_data_parallel(found))
        wins = {
            name: (won if learner is Role.DEFENDER else games - won, games)
            for name, (won, games) in total.pairs.items()
        }
        self.pool = self.pool.counted(learner.opponent, wins)
        return total.means("train_rollouts/asr_vs_")

    def _plays_on(self, learner: Role) -> bool:
        return learner is Role.ATTACKER or self._cfg.game.max_turns > 1

    def _opponent(self, learner: Role, step: int, group: int) -> str:
        return self.pool.opponent(step, 0 if self._plays_on(learner) else group)

    def _use_opponent(self, role: Role, name: str) -> AbstractContextManager[None]:
        folder = None if self.pool.is_present(role, name) else self._snapshot(role, name).folder
        return self._snapshot_cache.use_snapshot(self._pair.trainable[role], folder)

    def _snapshot(self, role: Role, name: str) -> Snapshot:
        return next(kept for kept in self._snapshots[role] if kept.name == name)
