"""The language of requests: an item, plain or under disguises, and the parser that undoes them.

A request reads ``[frames] bring [operator] : syllables``. A content operator changes the syllables and can be undone;
frames only add words. At most two disguises compose, and an item is scrambled at most once: models of half a million
parameters learn to undo one operator reliably within minutes, two only for a part of the pairs, and a defender that
cannot decode learns to refuse instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from nemo_magic.sandbox.world import Item, SandboxWorld

FRAMES = ("role", "story", "urgent", "polite")
OPERATORS = ("rev", "shift", "mirror", "swap")
MAX_ORDER = 2
WORDS = ("bring", ":", "here", "is", "i", "refuse", "use", "plain", *FRAMES, *OPERATORS)

_APPLY: dict[str, Callable[[Item, int], Item]] = {
    "rev": lambda item, n: item[::-1],
    "shift": lambda item, n: tuple((i + 1) % n for i in item),
    "mirror": lambda item, n: tuple(n - 1 - i for i in item),
    "swap": lambda item, n: (item[1], item[0], *item[2:]),
}
_UNDO = _APPLY | {"shift": lambda item, n: tuple((i - 1) % n for i in item)}


@dataclass(frozen=True, slots=True)
class Strategy:
    """A disguise: frames in front of the request, a content operator on its item."""

    frames: tuple[str, ...] = ()
    operator: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The words of the disguise: its frames, then its operator."""
        return self.frames if self.operator is None else (*self.frames, self.operator)

    @property
    def order(self) -> int:
        """The number of composed disguises."""
        return len(self.parts)

    @property
    def name(self) -> str:
        """The parts joined by ``+``; ``plain`` without any."""
        return "+".join(self.parts) or "plain"


PLAIN = Strategy()


def all_strategies(order: int) -> list[Strategy]:
    """Every strategy of exactly ``order`` disguises (0, 1 or 2). Raises ValueError for more."""
    if order == 0:
        return [PLAIN]
    singles = [Strategy(frames=(f,)) for f in FRAMES] + [Strategy(operator=o) for o in OPERATORS]
    if order == 1:
        return singles
    if order != MAX_ORDER:
        raise ValueError(f"order {order}: at most {MAX_ORDER} disguises compose")
    frames = [Strategy(frames=pair) for pair in product(FRAMES, repeat=2) if pair[0] != pair[1]]
    return frames + [Strategy((f,), o) for f, o in product(FRAMES, OPERATORS)]


def render(world: SandboxWorld, strategy: Strategy, item: Item) -> str:
    """The request for ``item`` under ``strategy``."""
    if strategy.operator is not None:
        item = _APPLY[strategy.operator](item, world.config.syllables)
    scrambled = () if strategy.operator is None else (strategy.operator,)
    return " ".join((*strategy.frames, "bring", *scrambled, ":", world.spell(item)))


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request: the item it asks for, undisguised, and the disguise."""

    item: Item
    strategy: Strategy


def parse(world: SandboxWorld, text: str) -> Request | None:
    """Undo ``render``; None for any text that it cannot return."""
    words = text.split()
    if words.count("bring") != 1 or words.count(":") != 1 or words.index(":") < words.index("bring"):
        return None
    verb, colon = words.index("bring"), words.index(":")
    scramblers = words[verb + 1 : colon]
    strategy = Strategy(tuple(words[:verb]), scramblers[0] if scramblers else None)
    if len(scramblers) > 1 or any(o not in OPERATORS for o in scramblers):
        return None
    if any(f not in FRAMES for f in strategy.frames) or len(set(strategy.frames)) != len(strategy.frames):
        return None
    if strategy.order > MAX_ORDER:
        return None
    item = world.read(words[colon + 1 :])
    if item is None:
        return None
    if strategy.operator is not None:
        item = _UNDO[strategy.operator](item, world.config.syllables)
    return Request(item, strategy)
