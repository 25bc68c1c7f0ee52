"""What the attacker was shown when it was warmed up: the combinations of strategies in its pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nemo_magic.analysis.labels import StrategyLabel
from nemo_magic.data.pools import AttackRow, read_attack_pool

_CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class PoolStrategies:
    """``readable``: rows with what they combine. ``unreadable``: rows whose strategy nobody can say; they show
    nothing."""

    path: str
    readable: Sequence[tuple[AttackRow, frozenset[str]]]
    unreadable: int

    @property
    def rows(self) -> int:
        return len(self.readable) + self.unreadable

    @cached_property
    def combinations(self) -> Mapping[frozenset[str], int]:
        """What is combined → how many rows do."""
        return Counter(parts for _, parts in self.readable)


def find_pool(config: Mapping[str, Any]) -> str | None:
    """What a run's attacker was warmed up on: the ``sft.pool`` of the warm-up that left the weights it began with; None
    where that is not known."""
    weights = config.get("actors", {}).get("attacker", {}).get("restore_from_path")
    if not weights or not (beside := Path(weights).parent / _CONFIG_FILE).is_file():
        return None
    warm_up = yaml.safe_load(beside.read_text(encoding="utf-8")) or {}
    sft = warm_up.get("sft", {}) if isinstance(warm_up, Mapping) else {}
    pool = sft.get("pool") if sft.get("role") in ("attacker", "both") else None
    return None if pool is None else str(pool)


def pool_strategies(path: str, label: Callable[[AttackRow], StrategyLabel | None]) -> PoolStrategies:
    """Read a pool. Raises DataError for a file that is none."""
    rows, _ = read_attack_pool(path)
    known = ((row, label(row)) for row in rows)
    readable = [(row, one.parts) for row, one in known if one is not None and one.parts is not None]
    return PoolStrategies(path, readable, len(rows) - len(readable))
