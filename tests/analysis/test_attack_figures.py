"""Figures of attacks whose mix, hybrids, novelty and intents are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from nemo_magic.analysis.attacks import attacks_of
from nemo_magic.analysis.diversity import mean_similarity, self_bleu
from nemo_magic.analysis.figures import (
    FigureOptions,
    LabelledAttack,
    by_phase,
    by_steps,
    by_strategy,
    different_seeds,
    figures,
    same_seed,
)
from nemo_magic.analysis.labels import UNKNOWN, StrategyLabel, decode_label, label_of_column
from nemo_magic.analysis.pool import find_pool, pool_strategies
from nemo_magic.config import conf_dir
from nemo_magic.config.analysis import SelfBleuConfig
from nemo_magic.judge.guards.strategies import read_strategy_rubric
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld
from tests.analysis.made_up_attacks import PHASES, attack, labelled, pool, row

PLAIN = FigureOptions(SelfBleuConfig(size=2))
RUBRIC = read_strategy_rubric(conf_dir() / "judge" / "rubric" / "strategies.yaml")


def test_the_mix_the_hybrids_and_what_is_new_are_counted_by_hand() -> None:
    some = [
        labelled("story"),
        labelled("story", intent=False),
        labelled("rev", "story"),
        labelled("role", "rev", intent=None),
        labelled(intent=False),
        LabelledAttack(attack(), StrategyLabel(UNKNOWN, None, "not understood")),
    ]
    seen = {frozenset({"story"}), frozenset({"story", "rev"})}
    found = figures(some, FigureOptions(SelfBleuConfig(size=2), seen))
    assert found["mix"] == pytest.approx({"story": 2 / 6, "rev+story": 1 / 6, "role+rev": 1 / 6, "plain": 1 / 6,
                                          UNKNOWN: 1 / 6}, abs=1e-6)  # fmt: skip
    assert found["parts"] == pytest.approx({"story": 3 / 5, "rev": 2 / 5, "role": 1 / 5})
    assert found["hybrid_share"] == pytest.approx(2 / 5)
    assert found["novel_share"] == pytest.approx(1 / 5)  # role+rev; whoever uses no strategy has found nothing
    assert found["unknown_share"] == pytest.approx(1 / 6, abs=1e-6)
    assert (found["attacks"], found["known"], found["intent_known"]) == (6, 5, 5)
    assert found["intent_lost"] == pytest.approx(2 / 5)


def test_what_is_not_known_is_null_and_never_zero() -> None:
    found = figures([LabelledAttack(attack(intent=None), StrategyLabel(UNKNOWN, None))], PLAIN)
    for name in ("hybrid_share", "novel_share", "intent_lost", "self_bleu", "self_bleu_same_seed", "similarity"):
        assert found[name] is None, name
    assert found["unknown_share"] == 1
    assert figures([], PLAIN)["unknown_share"] is None


def test_stretches_of_steps_and_phases_part_the_attacks() -> None:
    early = [labelled("story", step=1, phase=PHASES[0]), labelled("story", step=2, phase=PHASES[0])]
    late = [labelled("story", "rev", step=3, phase=PHASES[1])]
    bins = by_steps([*early, *late], 2, PLAIN)
    assert [(one["first"], one["last"], one["hybrid_share"]) for one in bins] == [(1, 2, 0.0), (3, 3, 1.0)]
    assert [one["attacks"] for one in by_steps([*early, *late], 24, PLAIN)] == [1, 1, 1]
    phases = by_phase([*early, *late], PLAIN)
    assert [(one["phase"], one["learner"], one["attacks"]) for one in phases] == [
        (0, "defender", 2),
        (1, "attacker", 1),
    ]


def test_every_strategy_has_its_own_success_and_its_rows_in_the_pool() -> None:
    some = [
        labelled("rev", "story", step=2, outcome="attack succeeded"),
        labelled("rev", "story", step=9),
        labelled("rev", "story", outcome="no verdict"),
        labelled("rev", "story", harmful=False, outcome="useful answer"),
        labelled("role", intent=False),
    ]
    first, second = by_strategy(some, {frozenset({"story", "rev"}): 7})
    assert (first["strategy"], first["attacks"], first["harmful"], first["asr"]) == ("rev+story", 4, 2, 0.5)
    assert (first["first_step"], first["last_step"], first["in_pool"]) == (2, 9, 7)
    assert (second["strategy"], second["in_pool"], second["intent_lost"]) == ("role", 0, 1.0)


def test_a_group_that_shares_one_attack_has_it_counted_once_and_bare_seeds_not_at_all() -> None:
    shared = [row(1, 0, ["story bring : a"], sample=sample) for sample in range(4)]
    own = [row(3, 0, ["story bring : a"], sample=sample) for sample in range(4)]
    found = attacks_of([*shared, *own, row(3, 1, [None])], PHASES)
    assert [(one.step, one.samples) for one in found] == [
        (1, (0, 1, 2, 3)), (3, (0,)), (3, (1,)), (3, (2,)), (3, (3,))
    ]  # fmt: skip
    assert [one.phase.index for one in found if one.phase] == [0, 1, 1, 1, 1]


def test_an_intent_that_nobody_told_is_neither_kept_nor_lost() -> None:
    said = ["yes", "no", "unknown", None]
    rows = [row(3, number, ["x"], intent=intent) for number, intent in enumerate(said)]
    failed = row(3, 9, ["x"], intent="no")
    failed["verdict"]["error"] = "the guard was away"
    assert [one.intent for one in attacks_of([*rows, failed], PHASES)] == [True, False, None, None, None]


def test_disguises_of_the_sandbox_are_decoded_and_their_order_makes_no_other_combination() -> None:
    world = SandboxWorld(SandboxConfig())
    item = world.spell(world.items_of_train[0])
    one, other = (decode_label(world, f"{frames} bring : {item}") for frames in ("role story", "story role"))
    assert (one.name, other.name) == ("role+story", "story+role")
    assert one.parts == other.parts == {"role", "story"}
    assert decode_label(world, f"bring : {item}").parts == frozenset()
    assert decode_label(world, "wug wug").parts is None


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        ("0", {"role-play"}),
        ("18_0", {"role-play", "translation"}),
        ("0_18", {"role-play", "translation"}),
        ("19", set()),
        ("Role play", {"role-play"}),
        ("0_19", None),
        ("20", None),
        ("0,18", None),
        ("", None),
    ],
)
def test_a_pools_column_is_read_as_ids_or_a_name_and_as_nothing_else(cell: str, parts: set[str] | None) -> None:
    found = label_of_column(RUBRIC, cell)
    assert (None if found is None else found.parts) == parts


def test_combinations_of_a_pool_are_counted_and_rows_without_one_are_told(tmp_path: Path) -> None:
    path = pool(tmp_path / "pool.jsonl", ["0", "0_18", "18_0", "somehow"])
    found = pool_strategies(str(path), lambda one: label_of_column(RUBRIC, one.strategy))
    assert found.combinations == {frozenset({"role-play"}): 1, frozenset({"role-play", "translation"}): 2}
    assert (found.rows, found.unreadable) == (4, 1)


def test_the_pool_is_the_one_that_the_attacker_was_warmed_up_on(tmp_path: Path) -> None:
    weights = tmp_path / "sft" / "weights"
    weights.mkdir(parents=True)
    run = {"actors": {"attacker": {"restore_from_path": str(weights)}}}
    assert find_pool(run) is None
    (tmp_path / "sft" / "config.yaml").write_text("sft: {role: attacker, pool: /data/attacks.jsonl}\n")
    assert find_pool(run) == "/data/attacks.jsonl"
    (tmp_path / "sft" / "config.yaml").write_text("sft: {role: defender, pool: /data/chats.jsonl}\n")
    assert find_pool(run) is None


def bleu_by_hand(hypothesis: str, references: Sequence[str]) -> float:
    """BLEU-4 of Papineni et al. for one sentence: effective order, exponential smoothing, the closest length."""

    def grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    said, others = hypothesis.split(), [one.split() for one in references]
    logs, halves = [], 1.0
    for n in range(1, 5):
        own = grams(said, n)
        if not own:
            break
        most: Counter[tuple[str, ...]] = Counter()
        for other in others:
            most |= grams(other, n)
        hits = sum((own & most).values())
        if hits == 0:
            halves *= 2
        logs.append(math.log(hits / own.total() if hits else 1 / (halves * own.total())))
    closest = min((abs(len(other) - len(said)), len(other)) for other in others)[1]
    brevity = min(1.0, math.exp(1 - closest / len(said)))
    return brevity * math.exp(mean(logs))


def test_self_bleu_is_what_a_direct_computation_says() -> None:
    sample = [
        "the wug sat on the mat and sang",
        "the wug sat on a hat and sang along",
        "a dax ran under the bridge",
        "the wug sat on the mat",
    ]
    by_hand = mean(bleu_by_hand(one, [other for other in sample if other is not one]) for one in sample)
    assert 0.1 < by_hand < 0.9
    assert self_bleu([sample], "13a") == pytest.approx(by_hand, abs=1e-9)
    pair = sample[:2]
    assert self_bleu([sample, pair], "none") == pytest.approx(
        mean([by_hand, mean([bleu_by_hand(*pair[:1], pair[1:]), bleu_by_hand(pair[1], pair[:1])])]), abs=1e-9
    )
    assert self_bleu([["one and the same text"] * 3], "13a") == pytest.approx(1)
    assert self_bleu([], "13a") is None


def test_samples_are_disjoint_of_one_size_and_of_different_seeds() -> None:
    drawn = [attack(sample=i, seed=f"seed {i % 7}", text=f"text {i}") for i in range(20)]
    samples = list(different_seeds(drawn, 3, 10))
    assert samples == [["text 0", "text 1", "text 2"], ["text 3", "text 4", "text 5"]]
    assert list(different_seeds(drawn, 8, 10)) == []
    assert len(list(different_seeds(drawn, 3, 1))) == 1
    assert next(iter(same_seed(drawn))) == ["text 0", "text 7"]
    assert list(same_seed(drawn[:7])) == []


def test_which_attacks_are_drawn_does_not_depend_on_their_order() -> None:
    some = [labelled("story", sample=i, seed=f"seed {i}", text=f"wug dax {i} {i % 3} zup") for i in range(30)]
    assert figures(some, PLAIN) == figures(some[::-1], PLAIN)


def test_the_similarity_of_all_pairs_is_what_pair_after_pair_says() -> None:
    vectors = np.random.default_rng(3).normal(size=(9, 5)).astype(np.float32)
    unit = [one / np.linalg.norm(one) for one in vectors]
    pairs = [float(unit[i] @ unit[j]) for i in range(9) for j in range(i)]
    assert mean_similarity(vectors) == pytest.approx(mean(pairs), abs=1e-6)
    assert mean_similarity(vectors[:1]) is None
    embedded = FigureOptions(SelfBleuConfig(), embed=lambda texts: {text: vectors[i] for i, text in enumerate(texts)})
    some = [labelled("story", sample=i, text=f"text {i}") for i in range(9)]
    found = figures(some, embedded)
    assert found["similarity"] == pytest.approx(mean(pairs), abs=1e-6)
    assert found["embedded"] == 9
