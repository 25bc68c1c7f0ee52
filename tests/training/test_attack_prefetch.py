"""Attacks written ahead: once per phase, saved, and dealt out again to whatever ranks there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from nemo_magic.game.episode import Completion, Label, Seed
from nemo_magic.rollout.attack_prefetch import AttackPrefetcher
from nemo_magic.rollout.conversation import AttackPrompt, RolloutSpec

WORLD: Any = SimpleNamespace(gather_data_parallel=lambda value: [value])


class Attacker:
    """Stands in for the arena: writes down what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        self.asked.append(sorted(seeds))
        return {step: [self.attack(step, group, seed) for group, seed in pairs] for step, pairs in seeds.items()}

    def attack(self, step: int, group: int, seed: Seed) -> AttackPrompt:
        said = Completion((1, 2), (3,), (-0.1,), f"{seed.text} at {step}", True)
        return AttackPrompt(RolloutSpec(seed, group, 0), said.text, group % 2 == 0, said if group else None)


def seeds_of(step: int) -> list[tuple[int, Seed]]:
    return [(group, Seed(f"{step}-{group}", f"ask {group}", Label.BENIGN)) for group in range(4)]


def rewrites(attacker: Attacker) -> AttackPrefetcher:
    rollouts: Any = attacker
    return AttackPrefetcher(WORLD, rollouts, seeds_of)


def test_a_phase_is_written_at_its_first_step() -> None:
    attacker = Attacker()
    store = rewrites(attacker)
    taken = [store.get(step, ahead=3 - i) for i, step in enumerate((6, 7, 8))]
    assert attacker.asked == [[6, 7, 8]]
    assert [attacks[0].rewrite for attacks in taken] == ["ask 0 at 6", "ask 0 at 7", "ask 0 at 8"]


def test_what_an_attacker_wrote_is_forgotten_when_it_learns() -> None:
    attacker = Attacker()
    store = rewrites(attacker)
    store.get(6, ahead=2)
    store.invalidate()
    store.get(7, ahead=1)
    assert attacker.asked == [[6, 7], [7]]


def test_a_step_that_is_played_again_finds_its_attacks() -> None:
    store = rewrites(Attacker())
    assert store.get(6, ahead=1) is store.get(6, ahead=1)


def test_saved_attacks_are_the_same_attacks_and_need_no_attacker() -> None:
    store = rewrites(Attacker())
    expected = [store.get(step, ahead=2 - i) for i, step in enumerate((6, 7))]
    rows = json.loads(json.dumps(store.to_rows(since=7)))
    assert {row["step"] for row in rows} == {7}
    again = Attacker()
    restored = rewrites(again)
    restored.from_rows(rows, lambda group: True)
    assert restored.get(7, ahead=1) == expected[1]
    assert again.asked == []


def test_other_ranks_share_them_by_group() -> None:
    store = rewrites(Attacker())
    store.get(6, ahead=1)
    rows = store.to_rows(since=6)
    shares = []
    for rank in range(2):
        restored = rewrites(Attacker())
        restored.from_rows(rows, lambda group, rank=rank: group % 2 == rank)  # type: ignore[misc]
        shares.append([attack.spec.group for attack in restored.get(6, ahead=1)])
    assert shares == [[0, 2], [1, 3]]
