"""The attack pool of the attacker's warm-up: the combinations of strategies in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.analysis.labels import StrategyLabel
from nemo_magic.data.pools import AttackRow, read_attack_pool
from nemo_magic.report.records import CONFIG_FILE, read_config


@dataclass(frozen=True)
class PoolStrategies:
    """A pool. ``readable``: rows with the strategies that they combine. ``unreadable``: the number of the other
    rows."""

    path: str
    readable: Sequence[tuple[AttackRow, frozenset[str]]]
    unreadable: int

    @property
    def rows(self) -> int:
        """The number of all rows."""
        return len(self.readable) + self.unreadable

    @cached_property
    def combinations(self) -> Mapping[frozenset[str], int]:
        """Combination → number of rows with it."""
        return Counter(parts for _, parts in self.readable)


def find_pool(config: Mapping[str, Any]) -> str | None:
    """The pool of a run's warm-up: the ``sft.pool`` of the run whose weights the attacker began with; None where that
    is not known.

    Raises:
        AnalysisError: that run's configuration cannot be read.
    """
    weights = config.get("actors", {}).get("attacker", {}).get("restore_from_path")
    if not weights or not (config_file := Path(weights).parent / CONFIG_FILE).is_file():
        return None
    try:
        sft = read_config(config_file.parent).get("sft", {})
    except ValueError as error:
        raise AnalysisError(f"{error}; name the pool in analysis.pool") from error
    pool = sft.get("pool") if sft.get("role") in ("attacker", "both") else None
    return None if pool is None else str(pool)


def pool_strategies(path: str, label: Callable[[AttackRow], StrategyLabel | None]) -> PoolStrategies:
    """Read a pool.

    Raises:
        DataError: the file is no attack pool.
    """
    rows, _ = read_attack_pool(path)
    known = ((row, label(row)) for row in rows)
    readable = [(row, one.parts) for row, one in known if one is not None and one.parts is not None]
    return PoolStrategies(path, readable, len(rows) - len(readable))
