"""One example of a benchmark: a conversation to be played, or one that was played elsewhere and is only judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_magic.game.episode import Label, Seed


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and what its benchmark says of it.

    ``turns``: the user's messages. ``request``: what is really asked for, where the row tells it apart from how it is
    asked. ``label`` and ``adversarial`` are None where the row does not say. ``behaviour`` groups examples for
    any-of-N; without one an example is its own group. ``replies``: what another model answered, turn by turn, where the
    row has it. ``judged_as``: what the judge is shown in the place of the last message; empty: that message.
    ``attempt_of``: the id of the example that this is one of several attacks on.
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
    judged_as: str = ""

    @property
    def seed(self) -> Seed | None:
        """The request as a seed of the game; None where its label is not known."""
        return None if self.label is None else Seed(self.id, self.request or self.turns[-1], self.label)

    @property
    def group(self) -> str:
        """Examples of one group are one behaviour: any-of-N counts it once."""
        return self.behaviour or self.attempt_of or self.id

    @property
    def unit(self) -> str:
        """The id of the example, whichever attack on it this is."""
        return self.attempt_of or self.id


def expand_attempts(examples: Sequence[Example], count: int) -> list[Example]:
    """``count`` attacks on every example, next to each other; the examples themselves where it is one."""
    if count == 1:
        return list(examples)
    return [
        replace(example, id=f"{example.id}#{i}", attempt_of=example.id) for example in examples for i in range(count)
    ]
