"""What a game remembers between two steps: one value, saved and loaded as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_magic.config import MagicConfig
from nemo_magic.config.secrets import masked
from nemo_magic.game.alarms import Alarms
from nemo_magic.game.pool import Pool
from nemo_magic.game.schedule import Schedule
from nemo_magic.game.stopping import EarlyStop
from nemo_magic.rl.role_baseline import RoleBaselines
from nemo_magic.rollout.attack_prefetch import AttackPrefetcher
from nemo_magic.runtime.checkpoint_paths import SNAPSHOTS, STATE
from nemo_magic.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from nemo_magic.actors.snapshots import Snapshot
    from nemo_magic.runtime.checkpoint_manager import CheckpointManager
    from nemo_magic.training.policies import PolicyPair

PREFETCHED = "rewrites.json"


@dataclass
class GameState:
    """A game between two steps, beside what checkpoints hold of each policy (weights, optimizer, random states).

    ``snapshots``: policy name → its kept selves, oldest first. ``live_rows``: how many trained in this phase until now.
    ``baselines``: the roles' own, where ``grpo.baseline=role``. ``metrics``: of the last step; a checkpoint is compared
    by one of them, and none is read back.
    """

    schedule: Schedule
    early_stop: EarlyStop = field(default_factory=EarlyStop)
    alarms: Alarms = field(default_factory=Alarms)
    pool: Pool = field(default_factory=Pool)
    snapshots: dict[str, list[Snapshot]] = field(default_factory=dict)
    live_rows: float = 0.0
    baselines: RoleBaselines = field(default_factory=RoleBaselines)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.schedule.step

    def save(
        self,
        checkpoints: CheckpointManager,
        pair: PolicyPair,
        prefetcher: AttackPrefetcher,
        cfg: MagicConfig,
        wait: bool = False,
    ) -> None:
        """Begin a checkpoint of the game, or write it whole where ``wait``; all ranks take part.

        Raises:
            CheckpointError: on every rank, when it cannot be written.
        """
        state = {
            "command": "train",
            "step": self.step,
            "schedule": self.schedule.to_dict(),
            "early_stop": self.early_stop.to_dict(),
            "alarms": self.alarms.to_dict(),
            "pool": self.pool.to_dict(),
            "snapshots": {name: [kept.name for kept in selves] for name, selves in self.snapshots.items()},
            "live_rows": self.live_rows,
            "skipped_updates": {name: policy.skipped_updates for name, policy in pair.unique.items()},
            "reference_age": {name: policy.reference_age for name, policy in pair.unique.items()},
            "baselines": dict(self.baselines.values),
            "config": masked(cfg),
        }
        documents = {STATE: state, PREFETCHED: prefetcher.to_rows(self.step)}
        checkpoints.save(self.step, pair.unique, documents, self.metrics, wait)

    @classmethod
    def load(
        cls, path: Path, checkpoints: CheckpointManager, pair: PolicyPair, prefetcher: AttackPrefetcher
    ) -> GameState:
        """The game that ``save`` wrote to the checkpoint ``path``, at whatever layout; policies and prefetched attacks
        are restored with it.

        Raises:
            CheckpointError: another version of nemo-magic wrote it.
        """
        saved: Mapping[str, Any] = checkpoints.restore(path, pair.unique)
        try:
            return cls._of(saved, path, checkpoints.folder.parent / SNAPSHOTS, pair, prefetcher)
        except KeyError as error:
            raise CheckpointError(
                f"{path / STATE} has no {error}: another version of nemo-magic wrote it, and only that one goes on "
                "from it; --resume never begins anew and keeps what is there"
            ) from error

    @classmethod
    def _of(
        cls, saved: Mapping[str, Any], path: Path, snapshots: Path, pair: PolicyPair, prefetcher: AttackPrefetcher
    ) -> GameState:
        from nemo_magic.actors.snapshots import Snapshot

        for name, policy in pair.unique.items():
            policy.skipped_updates = saved["skipped_updates"][name]
            policy.reference_age = saved["reference_age"][name]
        rows = json.loads((path / PREFETCHED).read_text(encoding="utf-8"))
        prefetcher.from_rows(rows, lambda group: group % pair.world.dp_size == pair.world.dp_rank)
        return cls(
            schedule=Schedule.from_dict(saved["schedule"]),
            early_stop=EarlyStop.from_dict(saved["early_stop"]),
            alarms=Alarms.from_dict(saved["alarms"]),
            pool=Pool.from_dict(saved["pool"]),
            snapshots={
                name: [Snapshot(kept, snapshots / name / kept) for kept in names]
                for name, names in saved["snapshots"].items()
            },
            live_rows=saved["live_rows"],
            baselines=RoleBaselines(saved["baselines"]),
        )
