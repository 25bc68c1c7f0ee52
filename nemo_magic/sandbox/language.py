"""The language of requests: how an item is asked for, plainly or under disguises, and how that is undone.

A request reads ``[frames] bring [operators] : syllables``. Content operators change the syllables and can be undone;
frames only add words. At most two disguises compose; the operators apply in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from nemo_magic.sandbox.world import Item, World

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
    """A disguise: frames in front of the request, content operators on its item."""

    frames: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def order(self) -> int:
        """How many disguises compose."""
        return len(self.frames) + len(self.operators)

    @property
    def name(self) -> str:
        return "+".join((*self.frames, *self.operators)) or "plain"


PLAIN = Strategy()


def all_strategies(order: int) -> list[Strategy]:
    """Every strategy of exactly ``order`` disguises (0, 1 or 2)."""
    if order == 0:
        return [PLAIN]
    singles = [Strategy(frames=(f,)) for f in FRAMES] + [Strategy(operators=(o,)) for o in OPERATORS]
    if order == 1:
        return singles
    if order != MAX_ORDER:
        raise ValueError(f"order {order}: at most {MAX_ORDER} disguises compose")
    frames = [Strategy(frames=pair) for pair in product(FRAMES, repeat=2) if pair[0] != pair[1]]
    operators = [Strategy(operators=pair) for pair in product(OPERATORS, repeat=2)]
    mixed = [Strategy((f,), (o,)) for f, o in product(FRAMES, OPERATORS)]
    return frames + operators + mixed


def render(world: World, strategy: Strategy, item: Item) -> str:
    """The request for ``item`` under ``strategy``."""
    for operator in strategy.operators:
        item = _APPLY[operator](item, world.config.syllables)
    return " ".join((*strategy.frames, "bring", *strategy.operators, ":", world.spell(item)))


@dataclass(frozen=True, slots=True)
class Request:
    """A request understood: what is really asked for, and under which disguise."""

    item: Item
    strategy: Strategy


def parse(world: World, text: str) -> Request | None:
    """Undo ``render``; None for anything that it cannot have written."""
    words = text.split()
    if words.count("bring") != 1 or words.count(":") != 1 or words.index(":") < words.index("bring"):
        return None
    verb, colon = words.index("bring"), words.index(":")
    strategy = Strategy(tuple(words[:verb]), tuple(words[verb + 1 : colon]))
    known = all(f in FRAMES for f in strategy.frames) and all(o in OPERATORS for o in strategy.operators)
    if not known or strategy.order > MAX_ORDER or len(set(strategy.frames)) != len(strategy.frames):
        return None
    item = world.read(words[colon + 1 :])
    if item is None:
        return None
    for operator in reversed(strategy.operators):
        item = _UNDO[operator](item, world.config.syllables)
    return Request(item, strategy)
