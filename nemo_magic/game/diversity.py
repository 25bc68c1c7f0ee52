"""How much the attacks on one seed differ, and a bonus for it, so that an attacker does not collapse onto one attack.

The bonus is not of the paper, and off by default (``rewards.diversity`` 0).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise

from nemo_magic.game.episode import Completion, Episode, Role
from nemo_magic.game.metrics import Ratios, Scored


def with_diversity(scored: Sequence[Scored], size: float) -> list[Scored]:
    """The same episodes, whose attacker's reward has one more part: ``diversity``, ``size`` × the mean distance of its
    rewrites to those of the group's other samples.

    Groups have to be complete. An episode without a model's attack, with one that has no text, or without an attacker's
    reward, has no such part and is not compared with.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for i, one in enumerate(scored):
        if one.rewards is not None and Role.ATTACKER in one.rewards and _attacks(one.episode):
            groups[one.episode.group].append(i)
    bigrams = {i: _bigrams(scored[i]) for members in groups.values() for i in members}
    result = list(scored)
    for members in groups.values():
        for i in members:
            others = [distance(bigrams[i], bigrams[j]) for j in members if j != i]
            bonus = size * sum(others) / len(others) if others else 0.0
            rewards = dict(scored[i].rewards or {})
            rewards[Role.ATTACKER] = {**rewards[Role.ATTACKER], "diversity": bonus}
            result[i] = scored[i]._replace(rewards=rewards)
    return result


def attack_distance(scored: Sequence[Scored]) -> Ratios:
    """The metric ``attack_distance``: the mean distance of two model-written attacks with a text over all pairs of a
    group.

    Groups have to be complete. A group that shares a single attack has no pair, and does not count.
    """
    groups: dict[int, dict[int, frozenset[tuple[str, str]]]] = defaultdict(dict)
    for one in scored:
        if completions := _attacks(one.episode):
            groups[one.episode.group][id(completions[0])] = _bigrams(one)
    ratios = Ratios()
    for attacks in groups.values():
        for first, second in combinations(attacks.values(), 2):
            ratios.add("attack_distance", distance(first, second))
    return ratios


def distance(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> float:
    """1 − Jaccard similarity of two texts' word pairs: 0 for the same text, 1 for nothing in common."""
    union = one | other
    return 1 - len(one & other) / len(union) if union else 0.0


def _attacks(episode: Episode) -> tuple[Completion, ...]:
    """The model-written attacks of an episode in which the defender was shown any text."""
    return episode.messages_of(Role.ATTACKER) if episode.played else ()


def _bigrams(scored: Scored) -> frozenset[tuple[str, str]]:
    words = ["", *(word for turn in scored.episode.turns for word in turn.rewrite.split()), ""]
    return frozenset(pairwise(words))
