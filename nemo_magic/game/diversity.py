"""How much the attacks on one seed differ, and a bonus for it, so that an attacker does not collapse onto one trick.

The bonus is not of the paper, and off by default (``rewards.diversity`` 0).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise

from nemo_magic.game.episode import Role
from nemo_magic.game.metrics import Ratios, Scored


def with_diversity(scored: Sequence[Scored], size: float) -> list[Scored]:
    """The same games, where the attacker's reward has a part ``diversity`` more: ``size`` × the mean distance of its
    rewrites to those of the other paid samples of the group.

    Groups have to be whole. A game in which no model attacked, or that was not paid, neither gets nor counts.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for i, one in enumerate(scored):
        if one.rewards is not None and Role.ATTACKER in one.rewards and one.episode.messages_of(Role.ATTACKER):
            groups[one.episode.group].append(i)
    shown = {i: _bigrams(scored[i]) for members in groups.values() for i in members}
    found = list(scored)
    for members in groups.values():
        for i in members:
            others = [distance(shown[i], shown[j]) for j in members if j != i]
            bonus = size * sum(others) / len(others) if others else 0.0
            rewards = dict(scored[i].rewards or {})
            rewards[Role.ATTACKER] = {**rewards[Role.ATTACKER], "diversity": bonus}
            found[i] = scored[i]._replace(rewards=rewards)
    return found


def attack_distance(scored: Sequence[Scored]) -> Ratios:
    """``attack_distance``: the distance of two model-written attacks on the same seed, over all pairs of a group.

    Groups have to be whole. One that shares a single attack has no pair, and does not count.
    """
    groups: dict[int, dict[int, frozenset[tuple[str, str]]]] = defaultdict(dict)
    for one in scored:
        said = one.episode.messages_of(Role.ATTACKER)
        if said:
            groups[one.episode.group][id(said[0])] = _bigrams(one)
    ratios = Ratios()
    for attacks in groups.values():
        for first, second in combinations(attacks.values(), 2):
            ratios.add("attack_distance", distance(first, second))
    return ratios


def distance(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> float:
    """1 − Jaccard similarity of two texts' word pairs: 0 for the same text, 1 for nothing in common."""
    union = one | other
    return 1 - len(one & other) / len(union) if union else 0.0


def _bigrams(scored: Scored) -> frozenset[tuple[str, str]]:
    words = ["", *(word for turn in scored.episode.turns for word in turn.rewrite.split()), ""]
    return frozenset(pairwise(words))
