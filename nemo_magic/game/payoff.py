"""Cross-play: every saved attacker against every saved defender, and what the matrix says about the game."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Row = Sequence[float]

NO_REWRITE = "no rewrite"
"""The row of the bare seeds, where a matrix has one: nobody's attack, and so not the first attacker."""


@dataclass(frozen=True, slots=True)
class BestResponseGap:
    """What each side could still gain by switching to the best other checkpoint of the matrix (ASR, 0 to 1).

    ``total`` is the pair's exploitability within the matrix (NashConv of the restricted game): 0 exactly when
    neither side has a better answer among the saved checkpoints. It is a lower bound of the true gap: attackers
    that were never saved, or never found, are not in the matrix.
    """

    attacker: float
    defender: float

    @property
    def total(self) -> float:
        return self.attacker + self.defender


@dataclass(frozen=True)
class CrossPlay:
    """Attack success rates, ``asr[i][j]`` in 0..1 for attacker ``i`` (a row) against defender ``j`` (a column).

    Names are in order of training, the initial model first. ``num_seeds`` is how many harmful seeds each cell was
    measured on (0: not said). ``over_refusal`` and ``useful``, where given, hold one share per defender, on benign
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

    def best_response_gap(self, attacker: int = -1, defender: int = -1) -> BestResponseGap:
        """How far the pair is from mutual best responses within the matrix; the last of each by default.

        With A the ASR matrix, the attacker could gain ``max_i A[i, j] - A[i*, j]`` and the defender
        ``A[i*, j*] - min_j A[i*, j]``.
        """
        played = self.asr[attacker][defender]
        return BestResponseGap(
            attacker=self.worst_case(defender) - played,
            defender=played - min(self.asr[attacker]),
        )

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

    def table(self) -> str:
        """The matrix as aligned plain text, ASR in percent; rows are attackers, columns defenders."""
        header = ["attacker \\ defender", *self.defenders]
        lines = [header, *([name, *_percent(row)] for name, row in zip(self.attackers, self.asr, strict=True))]
        lines += [[name, *_percent(row)] for name, row in self.benign_rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def benign_rows(self) -> list[tuple[str, list[float]]]:
        """The per-defender figures on benign seeds that were measured, named for a reader."""
        named = [("over-refusal (benign)", self.over_refusal), ("useful (benign)", self.useful)]
        return [(name, row) for name, row in named if row]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CrossPlay:
        """Read ``to_json``'s text back. Raises ValueError on a missing or unknown key, or values that do not fit."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a cross-play file holds one JSON object, found {type(values).__name__}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a cross-play file: {error}") from error

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> CrossPlay:
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _percent(row: Row) -> list[str]:
    return [f"{100 * value:.1f}" for value in row]
