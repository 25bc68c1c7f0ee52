"""Opponents drawn from the pool: past selves in the place of the role that does not learn.

In a defender phase of one turn every group of a step may have another attacker: each attacker that was drawn generates
its share of the whole phase at once, and is not needed after that. Where the opponent takes part in the step (it
answers, or it attacks for several turns), a step has one opponent: weights are swapped once a step, and the batch stays
whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_magic.actors.rank_group import run_on_all
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.metrics import Ratios, Scored, episode_succeeded
from nemo_magic.game.pool import PoolFull
from nemo_magic.game.schedule import Schedule
from nemo_magic.league.participants import SHARED, START
from nemo_magic.rollout.conversation import AttackPrompt
from nemo_magic.rollout.engine import RolloutEngine
from nemo_magic.runtime.checkpoint_paths import FOLDER as CHECKPOINTS
from nemo_magic.runtime.checkpoint_paths import STATE, committed_checkpoints
from nemo_magic.runtime.errors import TrainingError

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World
    from nemo_magic.actors.snapshots import Snapshot, SnapshotCache
    from nemo_magic.training.policies import PolicyPair
    from nemo_magic.training.run import Run
    from nemo_magic.training.state import GameState


def clear_out(world: World, run: Path, snapshots: Mapping[str, Sequence[Snapshot]]) -> None:
    """Remove the weights of evicted snapshots, unless a checkpoint that a run can go on from names them.

    Raises:
        TrainingError: on every rank, where they cannot be removed.
    """

    def remove() -> None:
        if not world.is_main:
            return
        known = {(owner, kept.name) for owner, selves in snapshots.items() for kept in selves}
        for path in committed_checkpoints(run / CHECKPOINTS):
            try:
                saved = json.loads((path / STATE).read_text(encoding="utf-8"))["snapshots"]
            except (ValueError, KeyError):  # damaged: nobody knows what it needs
                return
            known |= {(owner, name) for owner, names in saved.items() for name in names}
        for folder in (run / "snapshots").glob("*/[!.]*"):
            if (folder.parent.name, folder.name) not in known:
                shutil.rmtree(folder)

    run_on_all(world, remove, TrainingError, OSError)


class Opponents:
    """Past selves as opponents: who is kept, drawn and played. All methods are for all ranks.

    ``state``: the game's; its pool and snapshots change here.
    """

    def __init__(
        self,
        cfg: MagicConfig,
        pair: PolicyPair,
        rollouts: RolloutEngine,
        state: GameState,
        snapshot_cache: SnapshotCache,
        run: Run,
    ) -> None:
        self.state = state
        self._cfg = cfg
        self._pair = pair
        self._rollouts = rollouts
        self._snapshot_cache = snapshot_cache
        self._run = run

    @property
    def _only_latest(self) -> bool:
        return self._cfg.game.pool.draw == "latest"

    def keep(self, role: Role, name: str, phase: int) -> None:
        """Keep the weights of ``role`` as they are now, to be played against later and at the end.

        A snapshot of this name is replaced: the run was ended within the phase and went on, and the role has learned
        since.

        Raises:
            TrainingError: on every rank, when the disk budget is too small for any pool, or the disk takes no more.
        """
        from nemo_magic.actors.snapshots import save_snapshot

        policy, snapshots = self._pair.trainable[role], self.state.snapshots
        owner = next(key for key, one in self._pair.unique.items() if one is policy)
        if name == START and START in (kept.name for kept in snapshots[owner]):
            return  # in self-play one policy is both roles' first self
        # Megatron has one queue of write results per process: of two writes at a time each would get the other's.
        self._run.checkpoints.finish()
        folder = self._run.folder / "snapshots" / owner / name
        try:
            snapshot = save_snapshot(policy.actor, folder)
        except OSError as error:
            raise self._run.checkpoints.refused(f"the snapshot {error}") from error
        snapshots[owner] = [kept for kept in snapshots[owner] if kept.name != name] + [snapshot]
        for evicted_role, evicted in self.add(role, snapshot, phase):
            snapshots[evicted_role] = [kept for kept in snapshots[evicted_role] if kept.name != evicted]
        if self._cfg.game.pool.max_disk_gib is not None:
            clear_out(self._pair.world, self._run.folder, snapshots)

    def add(self, role: Role, snapshot: Snapshot, phase: int) -> list[tuple[Role, str]]:
        """Add a kept snapshot to the pool; returns the members that leave it.

        Raises:
            TrainingError: on every rank, when the disk budget is too small for any pool.
        """
        if SHARED in self.state.snapshots:
            return []  # self-play has no pool
        self._snapshot_cache.evict(snapshot)
        # Without torch's index, which has the folder's name in it: the pool's state must not depend on where a run is.
        files = [path for path in snapshot.folder.rglob("*") if path.is_file() and path.name != ".metadata"]
        size = self._pair.world.all_gather(sum(path.stat().st_size for path in files))[0]
        try:
            self.state.pool, evicted = self.state.pool.add(self._cfg.game.pool, role, snapshot.name, phase, size)
        except PoolFull as error:
            raise TrainingError(str(error)) from error
        for evicted_role, name in evicted:
            self._snapshot_cache.evict(self._snapshot(evicted_role, name))
        return evicted

    def draw(self, schedule: Schedule) -> None:
        """A phase begins: draw its opponents from the pool."""
        if not self._only_latest:
            role = schedule.learner.opponent
            self.state.pool = self.state.pool.draw(self._cfg.game.pool, role, self._cfg.seed, schedule.phase)

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        """As ``RolloutEngine.defender_openings``, each share by the attacker that was drawn for it."""
        if self._only_latest:
            return self._rollouts.defender_openings(seeds)
        openings: dict[int, list[AttackPrompt]] = {step: [] for step in seeds}
        # Everyone in the same order, also where this rank has no share: loading weights is for all ranks.
        for name in dict.fromkeys(self.state.pool.slots):
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
        """Within the context the opponent's weights are those of the step, where it takes part in it."""
        if self._only_latest or not self._takes_part_in_step(learner):
            yield
        else:
            with self._use_opponent(learner.opponent, self._opponent(learner, step, 0)):
                yield

    def update_win_rates(self, learner: Role, step: int, scored: Sequence[Scored]) -> dict[str, float]:
        """Count wins by opponent, for the next draw; returns ASR on harmful seeds by opponent."""
        if self._only_latest:
            return {}
        rates = Ratios()
        for episode, verdict, _ in scored:
            success = episode_succeeded(episode, verdict)
            # A seed that was shown as it is was nobody's attack.
            if episode.seed.label is Label.HARMFUL and success is not None and episode.turns[0].attack is not None:
                rates.add(self._opponent(learner, step, episode.group), success)
        total = Ratios.merged(self._pair.world.gather_data_parallel(rates))
        wins = {
            name: (won if learner is Role.DEFENDER else games - won, games)
            for name, (won, games) in total.pairs.items()
        }
        self.state.pool = self.state.pool.add_results(learner.opponent, wins)
        return total.means("train_rollouts/asr_vs_")

    def _takes_part_in_step(self, learner: Role) -> bool:
        return learner is Role.ATTACKER or self._cfg.game.max_turns > 1

    def _opponent(self, learner: Role, step: int, group: int) -> str:
        return self.state.pool.opponent_for(step, 0 if self._takes_part_in_step(learner) else group)

    def _use_opponent(self, role: Role, name: str) -> AbstractContextManager[None]:
        folder = None if self.state.pool.is_current(role, name) else self._snapshot(role, name).folder
        return self._snapshot_cache.use_snapshot(self._pair.trainable[role], folder)

    def _snapshot(self, role: Role, name: str) -> Snapshot:
        return next(kept for kept in self.state.snapshots[role] if kept.name == name)
