"""Conversations of several turns: one item asked for again and again, and a defender that stays true to itself.

Within a conversation a disguise that was refused is refused again, and one that delivered delivers again; only a fresh
one is a new draw, and the more others were refused before it the better its odds (``sandbox.wear``). So more turns help
whoever looks at the replies, and nobody else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_magic.sandbox.language import PLAIN, Strategy, render
from nemo_magic.sandbox.rules import REFUSAL, delivery
from nemo_magic.sandbox.world import Item, SandboxWorld

KEPT_AFTER_REFUSAL, KEPT_AFTER_DELIVERY = 0.3, 0.7
"""How often the next turn of the attack pool keeps the disguise of the turn before. The warmed-up attacker has read the
reply, no more: one that ignores it altogether learns to repeat itself whatever it is told, and stops there."""

REVISITED = 0.7
"""How often the next turn of the defender's pool comes back to a disguise of the conversation: being true to itself is
what it takes longest to learn."""

FIRST_TURNS = 0.5
"""Share of a pool's rows that teach a first turn; the others teach the later turns, all of them equally often."""

Draw = Callable[[random.Random], Strategy]
Next = Callable[[Sequence[tuple[Strategy, bool]]], Strategy]
"""The next disguise, after those of the conversation so far and whether each was refused."""

Rule = Callable[[Strategy, Item, int], bool]
"""Whether a fresh disguise of an item is refused, after so many other disguises of it were."""


class Memory:
    """What the pre-trained defender has decided in one conversation about ``item``; ``rule`` decides what is fresh."""

    def __init__(self, item: Item, rule: Rule) -> None:
        self._item = item
        self._rule = rule
        self._refused: dict[Strategy, bool] = {}

    def refuses(self, strategy: Strategy) -> bool:
        if strategy not in self._refused:
            self._refused[strategy] = self._rule(strategy, self._item, sum(self._refused.values()))
        return self._refused[strategy]


def attack_row(world: SandboxWorld, draw: random.Random, strategy_of: Draw, rule: Rule) -> Mapping[str, Any]:
    """A row of the attack pool: one rewrite, and in ``history`` the turns before it."""
    item = draw.choice(world.items_of_train)

    def next_of(met: Sequence[tuple[Strategy, bool]]) -> Strategy:
        last, refused = met[-1] if met else (None, False)
        kept = KEPT_AFTER_REFUSAL if refused else KEPT_AFTER_DELIVERY
        return last if last is not None and draw.random() < kept else strategy_of(draw)

    *past, last = _exchanges(world, draw, item, next_of, rule)
    return {
        "seed": render(world, PLAIN, item),
        "label": world.label(item).value,
        "strategy": last[0].name,
        **_written(world, item, last[0]),
        "history": [{**_written(world, item, strategy), "reply": reply} for strategy, reply in past],
    }


def answer_row(world: SandboxWorld, draw: random.Random, strategy_of: Draw, rule: Rule) -> Mapping[str, Any]:
    """A row of the defender's pool: ``messages`` that end with the answer to learn."""
    item = draw.choice(world.items_of_train)

    def next_of(met: Sequence[tuple[Strategy, bool]]) -> Strategy:
        return draw.choice(met)[0] if met and draw.random() < REVISITED else strategy_of(draw)

    messages = []
    for strategy, reply in _exchanges(world, draw, item, next_of, rule):
        messages.append({"role": "user", "content": render(world, strategy, item)})
        messages.append({"role": "assistant", "content": reply})
    return {"messages": messages}


def _exchanges(
    world: SandboxWorld, draw: random.Random, item: Item, next_of: Next, rule: Rule
) -> list[tuple[Strategy, str]]:
    """(disguise, reply) of every turn up to the one that the row teaches."""
    later = world.config.turns - 1
    turns = 1 if later == 0 or draw.random() < FIRST_TURNS else 2 + draw.randrange(later)
    memory, met = Memory(item, rule), list[tuple[Strategy, bool]]()
    while len(met) < turns:
        strategy = next_of(met)
        met.append((strategy, memory.refuses(strategy)))
    return [(strategy, REFUSAL if refused else delivery(world, item)) for strategy, refused in met]


def _written(world: SandboxWorld, item: Item, strategy: Strategy) -> dict[str, str]:
    """What the attacker thinks and writes."""
    return {"reasoning": " ".join(("use", *strategy.parts)), "rewrite": render(world, strategy, item)}
