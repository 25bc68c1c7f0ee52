"""From labelled attacks to figures: of the whole run, of its phases, and of stretches of steps."""

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
"""Seeds of a stretch of steps of which two attacks are compared."""


@dataclass(frozen=True)
class Labelled:
    attack: AttackRecord
    label: StrategyLabel


@dataclass(frozen=True)
class Measures:
    """``pool``: the combinations that are not new, None where they are not known. ``embed``: text → vector; None where
    nothing is embedded. ``max_texts`` are, of a stretch of steps."""

    bleu: SelfBleuConfig
    pool: Collection[frozenset[str]] | None = None
    embed: Callable[[Sequence[str]], Mapping[str, Vector]] | None = None
    max_texts: int = 64


def figures(some: Sequence[Labelled], measures: Measures) -> dict[str, Any]:
    """The figures of docs/attacks.md. A share is null where nothing that could have it is known."""
    parts = [one.label.parts for one in some if one.label.parts is not None]
    intent = [one.attack.intent for one in some if one.attack.intent is not None]
    pool = measures.pool
    # Whoever uses no strategy combines nothing that could be new.
    new = sum(bool(combined) and combined not in pool for combined in parts) if pool is not None else 0
    drawn = sorted((one.attack for one in some if one.attack.text), key=lambda attack: attack.order)
    return {
        "attacks": len(some),
        "known": len(parts),
        "mix": _shares(Counter(one.label.name for one in some), len(some)),
        "parts": _shares(Counter(part for combined in parts for part in combined), len(parts)),
        "unknown_share": _share(sum(one.label.name == UNKNOWN for one in some), len(some)),
        "hybrid_share": _share(sum(len(combined) > 1 for combined in parts), len(parts)),
        "novel_share": None if pool is None else _share(new, len(parts)),
        "intent_known": len(intent),
        "intent_lost": _share(sum(not kept for kept in intent), len(intent)),
        **_likeness(drawn, measures),
    }


def by_phase(some: Sequence[Labelled], measures: Measures) -> list[dict[str, Any]]:
    """``figures`` of each phase that has attacks."""
    phases = {one.attack.phase.index: one.attack.phase for one in some if one.attack.phase is not None}
    return [
        {"phase": index, "learner": phase.learner, "first": phase.first, "last": phase.last}
        | figures([one for one in some if one.attack.phase is not None and one.attack.phase.index == index], measures)
        for index, phase in sorted(phases.items())
    ]


def by_steps(some: Sequence[Labelled], bins: int, measures: Measures) -> list[dict[str, Any]]:
    """``figures`` of at most ``bins`` equally long stretches of steps; those without attacks are left out."""
    if not some:
        return []
    steps = [one.attack.step for one in some]
    first, last = min(steps), max(steps)
    size = -(-(last - first + 1) // bins)
    found: dict[int, list[Labelled]] = {}
    for one in some:
        found.setdefault((one.attack.step - first) // size, []).append(one)
    return [
        {"first": first + number * size, "last": min(last, first + (number + 1) * size - 1)}
        | figures(found[number], measures)
        for number in sorted(found)
    ]


def by_strategy(some: Sequence[Labelled], pool: Mapping[frozenset[str], int] | None) -> list[dict[str, Any]]:
    """What became of every strategy, the most frequent first. ``in_pool``: rows of the attack pool that combine the
    same; null where that is not known."""
    groups: dict[str, list[Labelled]] = {}
    for one in some:
        groups.setdefault(one.label.name, []).append(one)
    return [_strategy(name, groups[name], len(some), pool) for name in sorted(groups, key=lambda n: -len(groups[n]))]


def agreement(known: Sequence[frozenset[str]], said: Sequence[StrategyLabel]) -> dict[str, Any]:
    """How far labels agree with what is known. ``exact``: share that combines just the same; ``overlap``: mean Jaccard
    similarity of the parts (no strategy at all against none: 1); ``unknown``: share without a label, which agrees with
    nothing."""
    overlaps = [_overlap(parts, label.parts) for parts, label in zip(known, said, strict=True)]
    return {
        "rows": len(known),
        "exact": _share(sum(one == 1 for one in overlaps), len(known)),
        "overlap": _rounded(mean(overlaps)),
        "unknown": _share(sum(label.parts is None for label in said), len(known)),
    }


def _overlap(one: frozenset[str], other: frozenset[str] | None) -> float:
    if other is None:
        return 0.0
    return len(one & other) / len(one | other) if one | other else 1.0


def _strategy(
    name: str, group: Sequence[Labelled], total: int, pool: Mapping[frozenset[str], int] | None
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


def _likeness(drawn: Sequence[AttackRecord], measures: Measures) -> dict[str, Any]:
    samples = list(different_seeds(drawn, measures.bleu.size, measures.bleu.samples))
    pairs = list(same_seed(drawn))[:_SEEDS]
    vectors: list[Vector] = []
    if measures.embed is not None:
        texts = [attack.text for attack in drawn[: measures.max_texts]]
        known = measures.embed(texts)
        vectors = [known[text] for text in texts if text in known]
    return {
        "self_bleu": _rounded(self_bleu(samples, measures.bleu.tokenize)),
        "self_bleu_samples": len(samples),
        "self_bleu_same_seed": _rounded(self_bleu(pairs, measures.bleu.tokenize)),
        "same_seed_pairs": len(pairs),
        "similarity": _rounded(_similar(vectors)),
        "embedded": len(vectors),
    }


def different_seeds(drawn: Sequence[AttackRecord], size: int, most: int) -> Iterator[list[str]]:
    """Disjoint samples of exactly ``size`` attacks, at most ``most``; one attack a seed, the first that is drawn."""
    first = {attack.seed: attack.text for attack in reversed(drawn)}
    texts = [first[seed] for seed in dict.fromkeys(attack.seed for attack in drawn)]
    for number in range(min(most, len(texts) // size)):
        yield texts[number * size : (number + 1) * size]


def same_seed(drawn: Sequence[AttackRecord]) -> Iterator[list[str]]:
    """The first two attacks that are drawn on each seed that has two."""
    groups: dict[str, list[str]] = {}
    for attack in drawn:
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
