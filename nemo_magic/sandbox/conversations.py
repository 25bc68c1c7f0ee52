"""Conversations of several turns: one item requested again and again, and a defender that is consistent.

Within a conversation a disguise that was refused is refused again, and one that succeeded succeeds again; only a fresh
one is a new draw, whose odds grow with the number of others refused before it (``sandbox.wear``). So more turns help an
attacker that reads the replies, and no other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_magic.sandbox.language import PLAIN, Strategy, render
from nemo_magic.sandbox.rules import REFUSAL, delivery
from nemo_magic.sandbox.world import Item, SandboxWorld

KEPT_AFTER_REFUSAL, KEPT_AFTER_DELIVERY = 0.3, 0.7
"""How often the next turn of the attack pool keeps the disguise of the turn before. The warmed-up attacker uses the
reply a little: one that ignores it learns to repeat itself whatever the reply, and never explores."""

REVISITED = 0.7
"""How often the next turn of the defender's pool repeats a disguise of the conversation: consistency takes longest to
learn."""

FIRST_TURNS = 0.5
"""Share of a pool's rows that teach a first turn; the others teach the later turns, all of them equally often."""

StrategySampler = Callable[[random.Random], Strategy]
NextStrategy = Callable[[Sequence[tuple[Strategy, bool]]], Strategy]
"""The next disguise, after those of the conversation so far and whether each was refused."""

RefusalRule = Callable[[Strategy, Item, int], bool]
"""(disguise, item, number of other disguises of it refused before) → whether a fresh disguise is refused."""


class Memory:
    """The pre-trained defender's decisions about ``item`` in one conversation; ``rule`` decides on a fresh disguise."""

    def __init__(self, item: Item, rule: RefusalRule) -> None:
        self._item = item
        self._rule = rule
        self._refused: dict[Strategy, bool] = {}

    def refuses(self, strategy: Strategy) -> bool:
        """Whether the defender refuses ``strategy``, as it did before in this conversation."""
        if strategy not in self._refused:
            self._refused[strategy] = self._rule(strategy, self._item, sum(self._refused.values()))
        return self._refused[strategy]


def attack_row(
    world: SandboxWorld, draw: random.Random, strategy_of: StrategySampler, rule: RefusalRule
) -> Mapping[str, Any]:
    """A row of the attack pool: one rewrite, and the turns before it in ``history``."""
    item = draw.choice(world.items_of_train)

    def next_of(history: Sequence[tuple[Strategy, bool]]) -> Strategy:
        last, refused = history[-1] if history else (None, False)
        keep = KEPT_AFTER_REFUSAL if refused else KEPT_AFTER_DELIVERY
        return last if last is not None and draw.random() < keep else strategy_of(draw)

    *past, last = _exchanges(world, draw, item, next_of, rule)
    return {
        "seed": render(world, PLAIN, item),
        "label": world.label(item).value,
        "strategy": last[0].name,
        **_attack(world, item, last[0]),
        "history": [{**_attack(world, item, strategy), "reply": reply} for strategy, reply in past],
    }


def answer_row(
    world: SandboxWorld, draw: random.Random, strategy_of: StrategySampler, rule: RefusalRule
) -> Mapping[str, Any]:
    """A row of the defender's pool: ``messages`` that end with the answer to learn."""
    item = draw.choice(world.items_of_train)

    def next_of(history: Sequence[tuple[Strategy, bool]]) -> Strategy:
        return draw.choice(history)[0] if history and draw.random() < REVISITED else strategy_of(draw)

    messages = []
    for strategy, reply in _exchanges(world, draw, item, next_of, rule):
        messages.append({"role": "user", "content": render(world, strategy, item)})
        messages.append({"role": "assistant", "content": reply})
    return {"messages": messages}


def _exchanges(
    world: SandboxWorld, draw: random.Random, item: Item, next_of: NextStrategy, rule: RefusalRule
) -> list[tuple[Strategy, str]]:
    """(disguise, reply) of every turn up to the one that the row teaches."""
    later = world.config.turns - 1
    turns = 1 if later == 0 or draw.random() < FIRST_TURNS else 2 + draw.randrange(later)
    memory, history = Memory(item, rule), list[tuple[Strategy, bool]]()
    while len(history) < turns:
        strategy = next_of(history)
        history.append((strategy, memory.refuses(strategy)))
    return [(strategy, REFUSAL if refused else delivery(world, item)) for strategy, refused in history]


def _attack(world: SandboxWorld, item: Item, strategy: Strategy) -> dict[str, str]:
    """The attacker's reasoning and rewrite."""
    return {"reasoning": " ".join(("use", *strategy.parts)), "rewrite": render(world, strategy, item)}
