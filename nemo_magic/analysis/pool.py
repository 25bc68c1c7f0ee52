"""The combinations of strategies in the pool that the attacker was warmed up on."""

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
    """``readable``: rows with the strategies they combine. ``unreadable``: how many rows have no known strategy."""

    path: str
    readable: Sequence[tuple[AttackRow, frozenset[str]]]
    unreadable: int

    @property
    def rows(self) -> int:
        """All rows of the pool."""
        return len(self.readable) + self.unreadable

    @cached_property
    def combinations(self) -> Mapping[frozenset[str], int]:
        """A combination → the number of its rows."""
        return Counter(parts for _, parts in self.readable)


def find_pool(config: Mapping[str, Any]) -> str | None:
    """The pool that a run's attacker was warmed up on: ``sft.pool`` of the run that wrote its first weights; None where
    that is not known."""
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
