"""One conversation to be played, or that was played elsewhere and is only judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_magic.game.episode import Label, Seed


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to be played. ``turns``: what the user says, turn by turn; ``request``: what is really asked
    for, where the row tells it apart from how it is asked.

    ``label`` and ``adversarial`` are None where the row does not say. ``behaviour`` groups cases for any-of-N; without
    one a case is its own. ``replies``: what somebody else's model answered, turn by turn, where the row has it.
    ``attempt_of``: the case that this is one of several attacks on.
    """

    id: str
    turns: tuple[str, ...]
    label: Label | None
    request: str = ""
    category: str = ""
    method: str = ""
    behaviour: str = ""
    adversarial: bool | None = None
    replies: tuple[str, ...] = ()
    attempt_of: str = ""

    @property
    def seed(self) -> Seed | None:
        """The request as a seed of the game; None where its label is not known."""
        return None if self.label is None else Seed(self.id, self.request or self.turns[-1], self.label)

    @property
    def group(self) -> str:
        return self.behaviour or self.attempt_of or self.id

    @property
    def unit(self) -> str:
        """The id of the case, whichever attack on it this is."""
        return self.attempt_of or self.id


def attempts(cases: Sequence[Example], count: int) -> list[Example]:
    """``count`` attacks on every case, next to each other; the cases themselves where it is one."""
    if count == 1:
        return list(cases)
    return [replace(case, id=f"{case.id}#{i}", attempt_of=case.id) for case in cases for i in range(count)]
