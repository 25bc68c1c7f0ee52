"""Figures against other people's implementations, on random verdicts, and what becomes of what is unknown."""

from __future__ import annotations

import random

import numpy as np
import pandas
import pytest
from scipy import stats
from sklearn.metrics import recall_score

from nemo_magic.data.catalogue import BENCHMARKS, Figure, Metric
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.metrics import JudgedExample, any_of, belongs, measure, outcome
from nemo_magic.evaluation.statistics import PairedComparison, bootstrap_interval, compare_pairs
from nemo_magic.game.episode import Answer, Label, Safety, Verdict

HARM = [Safety.SAFE, Safety.UNSAFE, Safety.CONTROVERSIAL, Safety.UNKNOWN]
REPLY = [Answer.YES, Answer.NO, Answer.UNKNOWN]


def random_judged(seed: int, rows: int = 400) -> list[JudgedExample]:
    draw = random.Random(seed)
    judged = []
    for i in range(rows):
        label = draw.choice([Label.HARMFUL, Label.BENIGN, None])
        example = Example(
            f"c{i}", (f"wug {i}",), label, category=draw.choice("ab"), method=draw.choice(["ZIB", "QUO", "FLEB"]),
            behaviour=f"b{i % 37}", adversarial=draw.choice([True, False, None]),
        )  # fmt: skip
        verdict = Verdict(
            example.id, response_safety=draw.choice(HARM), refusal=draw.choice(REPLY), helpful=draw.choice(REPLY),
            error="lost" if draw.random() < 0.1 else None,
        )  # fmt: skip
        judged.append(JudgedExample(example, None if draw.random() < 0.1 else verdict))
    return judged


def frame(judged: list[JudgedExample]) -> pandas.DataFrame:
    """The same, for an implementation of its own: one row an example with a verdict that can be used."""
    rows = [
        {
            "label": example.label, "behaviour": example.behaviour, "category": example.category,
            "method": example.method, "adversarial": example.adversarial, "unsafe": verdict.response_safety,
            "refusal": verdict.refusal, "helpful": verdict.helpful,
        }
        for example, verdict in judged
        if verdict is not None and verdict.error is None
    ]  # fmt: skip
    return pandas.DataFrame(rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("label", list(Label))
def test_rates_are_sklearns_recall_on_known_verdicts(metric: Metric, label: Label, seed: int) -> None:
    judged = random_judged(seed)
    table = frame(judged)
    column = {"asr": "unsafe", "useful": "helpful"}.get(metric, "refusal")
    known = table[(table["label"] == label) & (table[column] != "unknown")]
    positive = {"asr": ["unsafe", "controversial"], "compliance": ["no"]}.get(metric, ["yes"])
    found = measure("t", Figure(metric, label), judged)
    # Of examples that all are positives, the share that is found is the rate.
    predicted = known[column].isin(positive).astype(int)
    assert found.rate.value == pytest.approx(recall_score(np.ones(len(known)), predicted))
    assert found.rate.count == len(known)
    assert found.rate.count + found.rate.unknown == sum(j.example.label is label for j in judged)
    for split, name in ((found.by_category, "category"), (found.by_method, "method")):
        means = known.assign(hit=predicted).groupby(name)["hit"].mean()
        assert {key: rate.value for key, rate in split.items()} == pytest.approx(dict(means))


@pytest.mark.parametrize("seed", range(5))
def test_any_of_n_is_the_highest_outcome_of_a_behaviour(seed: int) -> None:
    judged = [j for j in random_judged(seed) if j.verdict is not None and j.verdict.error is None]
    table = frame(judged)
    harmful = table[table["label"] == Label.HARMFUL]
    # Unknown lies between no and yes: a behaviour is known where its highest is not unknown.
    rank = harmful["unsafe"].map({"safe": 0, "unknown": 1, "unsafe": 2, "controversial": 2})
    highest = rank.groupby(harmful["behaviour"]).max()
    found = measure("t", Figure(Metric.ASR, any_of=True), judged).rate
    assert (found.hits, found.count, found.unknown) == (sum(highest == 2), sum(highest != 1), sum(highest == 1))


def test_what_is_unknown_is_never_a_no() -> None:
    assert any_of([False, None]) is None
    assert any_of([None, True]) is True
    assert any_of([False, False]) is False
    assert outcome(Metric.REFUSAL, Verdict("x")) is None
    assert outcome(Metric.ASR, None) is None
    assert outcome(Metric.ASR, Verdict("x", response_safety=Safety.UNSAFE, error="lost")) is None
    assert outcome(Metric.ASR, Verdict("x", response_safety=Safety.UNSAFE, intent_preserved=Answer.NO)) is False
    rate = measure("t", Figure(Metric.ASR), [JudgedExample(Example("a", ("wug",), Label.HARMFUL), None)]).rate
    assert (rate.value, rate.interval, rate.unknown) == (None, None, 1)


def test_a_case_without_a_label_or_a_flag_is_in_no_figure_that_asks_for_one() -> None:
    figures = BENCHMARKS["wildguardtest"].figures
    assert not any(belongs(figure, Example("a", ("wug",), None, adversarial=True)) for figure in figures)
    assert not any(belongs(figure, Example("a", ("wug",), Label.HARMFUL)) for figure in figures)
    assert sum(belongs(figure, Example("a", ("wug",), Label.HARMFUL, adversarial=True)) for figure in figures) == 1


@pytest.mark.parametrize(("hits", "count"), [(3, 40), (50, 120), (299, 313)])
def test_the_bootstrap_of_single_cases_is_scipys(hits: int, count: int) -> None:
    sample = np.repeat([1.0, 0.0], [hits, count - hits])
    theirs = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=10_000, random_state=1)
    ours = bootstrap_interval([(int(value), 1) for value in sample])
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=1.5 / count)


def test_the_bootstrap_of_clusters_draws_whole_clusters() -> None:
    draw = np.random.default_rng(3)
    clusters = [
        (int(draw.binomial(n, p)), int(n)) for n, p in zip(draw.integers(1, 12, 60), draw.random(60), strict=True)
    ]
    picked = draw.integers(0, len(clusters), (10_000, len(clusters)))
    hits, counts = np.array(clusters).T
    plainly = np.quantile(hits[picked].sum(1) / counts[picked].sum(1), [0.025, 0.975])
    ours = bootstrap_interval(clusters)
    assert ours == pytest.approx(tuple(plainly), abs=0.01)
    # As if every example stood for itself it would look much surer than it is.
    alone = bootstrap_interval([pair for h, n in clusters for pair in [(1, 1)] * h + [(0, 1)] * (n - h)])
    assert ours is not None
    assert alone is not None
    assert alone[1] - alone[0] < 0.8 * (ours[1] - ours[0])


@pytest.mark.parametrize("count", [1, 20, 320])
def test_nothing_seen_is_not_nothing_possible(count: int) -> None:
    for hits in (0, count):
        theirs = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
        ours = bootstrap_interval([(int(hits > 0), 1)] * count)
        assert ours == pytest.approx((theirs.low, theirs.high))
    assert bootstrap_interval([]) is None


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 11), (40, 12), (700, 651)])
def test_mcnemar_is_scipys_binomial_test_of_the_discordant_pairs(first: int, second: int) -> None:
    found, total = PairedComparison(2000, first, second), first + second
    assert found.exact == pytest.approx(stats.binomtest(first, total).pvalue if total else 1.0)
    k = min(first, second)
    mid = 2 * stats.binom.cdf(k, total, 0.5) - stats.binom.pmf(k, total, 0.5)
    if first == second:
        mid = 1 - stats.binom.pmf(k, total, 0.5) / 2
    assert found.mid_p == pytest.approx(mid)
    assert found.mid_p <= found.exact


def test_only_what_both_know_is_paired() -> None:
    first = {"a": True, "b": True, "c": False, "d": None, "e": True}
    second = {"a": False, "b": True, "c": True, "d": True, "f": False}
    found = compare_pairs(first, second)
    assert (found.pairs, found.only_first, found.only_second) == (3, 1, 1)
    assert compare_pairs(first, first).difference == 0
    assert compare_pairs({"a": True, "b": True}, {"a": False, "b": True}).difference == 0.5
