"""The payoff matrix of a cross-play: saved attackers against saved defenders, and what each side could still gain."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

NO_REWRITE = "no rewrite"
"""The row of the bare seeds, where a matrix has one: nobody's attack, and so not the first attacker."""


@dataclass(frozen=True, slots=True)
class BestResponseGap:
    """What each side could still gain against the other's strategy by its best pure response within a matrix; both ≥ 0.

    It is a lower bound of the true gap: attackers that were never saved, or never found, are not in the matrix.
    """

    attacker: float
    defender: float

    @property
    def total(self) -> float:
        """NashConv of the restricted game: 0 exactly in an equilibrium of the matrix."""
        return self.attacker + self.defender


def best_response_gap(
    payoff: Iterable[Iterable[float]], attacker: Iterable[float], defender: Iterable[float]
) -> BestResponseGap:
    """How far two mixtures are from being best responses to each other.

    With A the ``payoff`` (attackers × defenders, the attacker wants it high) and mixtures x and y, the attacker could
    gain ``max_i (A y)_i - x'A y`` and the defender ``x'A y - min_j (x'A)_j``.

    Raises:
        ValueError: a mixture has not one share per row or column.
    """
    matrix, x, y = [list(map(float, row)) for row in payoff], list(map(float, attacker)), list(map(float, defender))
    columns = list(zip(*matrix, strict=True))
    for name, mixture, size in (("attacker", x, len(matrix)), ("defender", y, len(columns))):
        if len(mixture) != size:
            raise ValueError(f"the {name}'s mixture has {len(mixture)} shares, the game {size}")
    of_attackers = [_dot(row, y) for row in matrix]
    value = _dot(of_attackers, x)
    return BestResponseGap(max(of_attackers) - value, value - min(_dot(column, x) for column in columns))


@dataclass(frozen=True)
class CrossPlay:
    """Attack success rates, ``asr[i][j]`` in 0..1 for attacker ``i`` (a row) against defender ``j`` (a column).

    Names are in order of training, the initial model first. ``num_seeds`` is how many harmful seeds each cell was
    measured on (0: not known). ``over_refusal`` and ``useful``, where given, hold one share per defender, on benign
    seeds. Raises ValueError when the shape or a value does not fit.
    """

    attackers: list[str]
    defenders: list[str]
    asr: list[list[float]]
    num_seeds: int = 0
    over_refusal: list[float] = field(default_factory=list)
    useful: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.attackers or not self.defenders:
            raise ValueError("cross-play needs at least one attacker and one defender")
        shape, expected = [len(row) for row in self.asr], [len(self.defenders)] * len(self.attackers)
        if shape != expected:
            raise ValueError(
                f"asr must have {len(self.attackers)} rows of {len(self.defenders)} values, has rows of {shape}"
            )
        for name, row in (("over_refusal", self.over_refusal), ("useful", self.useful)):
            if row and len(row) != len(self.defenders):
                raise ValueError(f"{name} must hold {len(self.defenders)} values, one per defender, holds {len(row)}")
        for value in (*(cell for line in self.asr for cell in line), *self.over_refusal, *self.useful):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"a share must lie in 0..1, found {value}")

    def worst_case(self, defender: int = -1) -> float:
        """The highest ASR any attacker of the matrix reaches against ``defender`` (an index; the last by default)."""
        return max(row[defender] for row in self.asr)

    def best_response_gap(self) -> BestResponseGap:
        """How far the last pair is from mutual best responses within the matrix (ASR, 0 to 1)."""
        return best_response_gap(self.asr, one_hot(len(self.attackers), -1), one_hot(len(self.defenders), -1))

    def last_defender_best(self, tolerance: float = 0.0) -> bool:
        """Whether no attacker does worse against another defender than against the last (ties count as best)."""
        return all(row[-1] <= min(row) + tolerance for row in self.asr)

    def gain_over_first_attacker(self, first: int = 0, defender: int = 0) -> float:
        """How much more ASR the best attacker after ``first`` has against ``defender`` than ``first`` has.

        ``first`` is the warmed-up attacker's row, ``defender`` the initial defender's column. Raises ValueError
        when no attacker comes after ``first``.
        """
        later = [row[defender] for row in self.asr[first + 1 :]] if first >= 0 else []
        if not later:
            raise ValueError(f"no attacker comes after number {first} of {len(self.attackers)}")
        return max(later) - self.asr[first][defender]

    def benign_rows(self) -> list[tuple[str, list[float]]]:
        """The per-defender figures on benign seeds that were measured, named for a reader."""
        named = [("over-refusal (benign)", self.over_refusal), ("useful (benign)", self.useful)]
        return [(name, row) for name, row in named if row]

    def to_json(self) -> str:
        """The matrix as the text of a file that holds one JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> CrossPlay:
        """Read back the text of ``to_json``.

        Raises:
            ValueError: a key is missing or unknown, or the values do not fit.
        """
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"a cross-play file holds one JSON object, found {type(values).__name__}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a cross-play file: {error}") from error


def one_hot(size: int, index: int) -> list[float]:
    """A pure strategy as a mixture of ``size`` shares; a negative ``index`` counts from the end."""
    return [float(i == index % size) for i in range(size)]


def _dot(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))
