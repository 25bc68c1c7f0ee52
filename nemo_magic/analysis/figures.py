"""Figures of labelled attacks: of the whole run, of its phases, and of stretches of steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from nemo_magic.analysis.attacks import NO_VERDICT, SUCCEEDED, AttackRecord
from nemo_magic.analysis.diversity import mean_similarity, self_bleu
from nemo_magic.analysis.embedding import Vector
from nemo_magic.analysis.labels import UNKNOWN, StrategyLabel
from nemo_magic.config.analysis import SelfBleuConfig

_SEEDS = 64
"""At most so many seeds of a stretch of steps have two of their attacks compared."""


@dataclass(frozen=True)
class LabelledAttack:
    """An attack and its strategy."""

    attack: AttackRecord
    label: StrategyLabel


@dataclass(frozen=True)
class FigureOptions:
    """What the figures need beside attacks. ``pool``: the combinations that are not new, None where they are not known.
    ``embed``: texts → vectors, None where nothing is embedded. ``max_texts``: texts of a stretch of steps that are."""

    bleu: SelfBleuConfig
    pool: Collection[frozenset[str]] | None = None
    embed: Callable[[Sequence[str]], Mapping[str, Vector]] | None = None
    max_texts: int = 64


def figures(attacks: Sequence[LabelledAttack], options: FigureOptions) -> dict[str, Any]:
    """The figures of docs/attacks.md. A share is null where nothing that could have it is known."""
    parts = [one.label.parts for one in attacks if one.label.parts is not None]
    intent = [one.attack.intent for one in attacks if one.attack.intent is not None]
    pool = options.pool
    # An attack without a strategy combines nothing that could be new.
    new = sum(bool(combination) and combination not in pool for combination in parts) if pool is not None else 0
    ordered = sorted((one.attack for one in attacks if one.attack.text), key=lambda attack: attack.order)
    return {
        "attacks": len(attacks),
        "known": len(parts),
        "mix": _shares(Counter(one.label.name for one in attacks), len(attacks)),
        "parts": _shares(Counter(part for combination in parts for part in sorted(combination)), len(parts)),
        "unknown_share": _share(sum(one.label.name == UNKNOWN for one in attacks), len(attacks)),
        "hybrid_share": _share(sum(len(combination) > 1 for combination in parts), len(parts)),
        "novel_share": None if pool is None else _share(new, len(parts)),
        "intent_known": len(intent),
        "intent_lost": _share(sum(not kept for kept in intent), len(intent)),
        **_diversity(ordered, options),
    }


def by_phase(attacks: Sequence[LabelledAttack], options: FigureOptions) -> list[dict[str, Any]]:
    """``figures`` of each phase that has attacks."""
    phases = {one.attack.phase.index: one.attack.phase for one in attacks if one.attack.phase is not None}
    return [
        {"phase": index, "learner": phase.learner, "first": phase.first, "last": phase.last}
        | figures([one for one in attacks if one.attack.phase is not None and one.attack.phase.index == index], options)
        for index, phase in sorted(phases.items())
    ]


def by_steps(attacks: Sequence[LabelledAttack], bins: int, options: FigureOptions) -> list[dict[str, Any]]:
    """``figures`` of at most ``bins`` equally long stretches of steps; those without attacks are left out."""
    if not attacks:
        return []
    steps = [one.attack.step for one in attacks]
    first, last = min(steps), max(steps)
    size = -(-(last - first + 1) // bins)
    bins_of_attacks: dict[int, list[LabelledAttack]] = {}
    for one in attacks:
        bins_of_attacks.setdefault((one.attack.step - first) // size, []).append(one)
    return [
        {"first": first + number * size, "last": min(last, first + (number + 1) * size - 1)}
        | figures(bins_of_attacks[number], options)
        for number in sorted(bins_of_attacks)
    ]


def by_strategy(attacks: Sequence[LabelledAttack], pool: Mapping[frozenset[str], int] | None) -> list[dict[str, Any]]:
    """The figures of every strategy, the most frequent first. ``in_pool``: rows of the attack pool that combine the
    same; null where that is not known."""
    groups: dict[str, list[LabelledAttack]] = {}
    for one in attacks:
        groups.setdefault(one.label.name, []).append(one)
    return [_strategy(name, groups[name], len(attacks), pool) for name in sorted(groups, key=lambda n: -len(groups[n]))]


def agreement(known: Sequence[frozenset[str]], labels: Sequence[StrategyLabel]) -> dict[str, Any]:
    """Agreement of labels with known combinations. ``exact``: share of equal combinations; ``overlap``: mean Jaccard
    similarity of the parts (no strategy at all against none: 1); ``unknown``: share without a label, which agrees with
    nothing."""
    overlaps = [_overlap(parts, label.parts) for parts, label in zip(known, labels, strict=True)]
    return {
        "rows": len(known),
        "exact": _share(sum(one == 1 for one in overlaps), len(known)),
        "overlap": _rounded(mean(overlaps)),
        "unknown": _share(sum(label.parts is None for label in labels), len(known)),
    }


def _overlap(one: frozenset[str], other: frozenset[str] | None) -> float:
    if other is None:
        return 0.0
    return len(one & other) / len(one | other) if one | other else 1.0


def _strategy(
    name: str, group: Sequence[LabelledAttack], total: int, pool: Mapping[frozenset[str], int] | None
) -> dict[str, Any]:
    harmful = [one.attack for one in group if one.attack.harmful and one.attack.outcome != NO_VERDICT]
    intent = [one.attack.intent for one in group if one.attack.intent is not None]
    parts, steps = group[0].label.parts, [one.attack.step for one in group]
    return {
        "strategy": name,
        "parts": None if parts is None else sorted(parts),
        "attacks": len(group),
        "share": _share(len(group), total),
        "harmful": len(harmful),
        "asr": _share(sum(attack.outcome == SUCCEEDED for attack in harmful), len(harmful)),
        "intent_lost": _share(sum(not kept for kept in intent), len(intent)),
        "first_step": min(steps),
        "last_step": max(steps),
        "in_pool": None if pool is None or parts is None else pool.get(parts, 0),
    }


def _diversity(ordered: Sequence[AttackRecord], options: FigureOptions) -> dict[str, Any]:
    samples = list(different_seeds(ordered, options.bleu.size, options.bleu.samples))
    pairs = list(same_seed(ordered))[:_SEEDS]
    vectors: list[Vector] = []
    if options.embed is not None:
        texts = [attack.text for attack in ordered[: options.max_texts]]
        known = options.embed(texts)
        vectors = [known[text] for text in texts if text in known]
    return {
        "self_bleu": _rounded(self_bleu(samples, options.bleu.tokenize)),
        "self_bleu_samples": len(samples),
        "self_bleu_same_seed": _rounded(self_bleu(pairs, options.bleu.tokenize)),
        "same_seed_pairs": len(pairs),
        "similarity": _rounded(_similar(vectors)),
        "embedded": len(vectors),
    }


def different_seeds(ordered: Sequence[AttackRecord], size: int, most: int) -> Iterator[list[str]]:
    """Disjoint samples of exactly ``size`` attacks, at most ``most``; one attack a seed, its first."""
    first = {attack.seed: attack.text for attack in reversed(ordered)}
    texts = [first[seed] for seed in dict.fromkeys(attack.seed for attack in ordered)]
    for number in range(min(most, len(texts) // size)):
        yield texts[number * size : (number + 1) * size]


def same_seed(ordered: Sequence[AttackRecord]) -> Iterator[list[str]]:
    """The first two attacks on each seed that has two."""
    groups: dict[str, list[str]] = {}
    for attack in ordered:
        groups.setdefault(attack.seed, []).append(attack.text)
    return (texts[:2] for texts in groups.values() if len(texts) > 1)


def _similar(vectors: Sequence[Vector]) -> float | None:
    import numpy as np

    return mean_similarity(np.stack(vectors)) if vectors else None


def _shares(counts: Counter[str], total: int) -> dict[str, float]:
    return {name: round(count / total, 6) for name, count in counts.most_common()}


def _share(hits: int, total: int) -> float | None:
    return round(hits / total, 6) if total else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
