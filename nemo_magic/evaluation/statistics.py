"""How sure a rate is, and whether two defenders differ: bootstrap over clusters, and McNemar's test on pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np

Unit = TypeVar("Unit", bound=Hashable)

RESAMPLES = 10_000
LEVEL = 0.95


def bootstrap_interval(
    clusters: Iterable[tuple[float, int]], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of Σ hits / Σ count when whole clusters are drawn with replacement.

    ``clusters``: (hits, count) of each; examples of one behaviour are no independent evidence, so they belong to one.
    None without any example. Where every cluster is all hits or all misses alike, resampling cannot vary: the exact
    (Clopper–Pearson) bound is given, for as many trials as there are clusters.
    """
    kinds = Counter((hits, count) for hits, count in clusters if count)
    total = sum(kinds.values())
    if not total:
        return None
    tail = (1 - level) / 2
    if all(hits == 0 for hits, _ in kinds):
        return 0.0, 1 - tail ** (1 / total)
    if all(hits == count for hits, count in kinds):
        return tail ** (1 / total), 1.0
    # Clusters that are alike are interchangeable: drawing how often each kind comes is the same draw, and cheap.
    pairs, weights = np.array(list(kinds)), np.array(list(kinds.values())) / total
    draws = np.random.default_rng(seed).multinomial(total, weights, size=resamples) @ pairs
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two defenders on the same examples. ``only_first``: hits of the first alone; ``only_second`` likewise; ``pairs``:
    examples on which both are known."""

    pairs: int
    only_first: int
    only_second: int

    @property
    def difference(self) -> float:
        """The first's rate minus the second's; 0 without pairs."""
        return (self.only_first - self.only_second) / self.pairs if self.pairs else 0.0

    @property
    def exact(self) -> float:
        """McNemar's exact two-sided p: the discordant pairs fall either way with probability 1/2."""
        tail, point = self._tail()
        return float(min(Fraction(1), 2 * (tail + point)))

    @property
    def mid_p(self) -> float:
        """The same with half of the probability of what was seen: closer to its level, and less conservative."""
        tail, point = self._tail()
        return float(2 * tail + point if self.only_first != self.only_second else 1 - point / 2)

    def _tail(self) -> tuple[Fraction, Fraction]:
        """P(X < k) and P(X = k) for the smaller count k of n discordant pairs."""
        n, k = self.only_first + self.only_second, min(self.only_first, self.only_second)
        ways, below = 1, 0
        for i in range(k):
            below += ways
            ways = ways * (n - i) // (i + 1)
        return Fraction(below, 2**n), Fraction(ways, 2**n)


def compare_pairs(first: Mapping[Unit, bool | None], second: Mapping[Unit, bool | None]) -> PairedComparison:
    """Two defenders' outcomes, paired by key where both are known (not None)."""
    both = [(first[key], second[key]) for key in first if key in second]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    return PairedComparison(len(known), sum(a and not b for a, b in known), sum(b and not a for a, b in known))
