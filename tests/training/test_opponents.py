"""Past selves in the place of the opponent: whose weights are worn when, and how often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_magic.config import MagicConfig, compose
from nemo_magic.game.episode import Completion, Episode, Label, Role, Safety, Seed, Turn, Verdict
from nemo_magic.game.metrics import Scored
from nemo_magic.game.pool import Pool
from nemo_magic.game.schedule import Schedule
from nemo_magic.rollout.attack_prefetch import AttackPrefetcher
from nemo_magic.rollout.conversation import AttackPrompt, RolloutSpec
from nemo_magic.runtime.errors import TrainingError
from nemo_magic.training.opponents import Opponents
from nemo_magic.training.state import GameState

NAMES = ["start", "phase-01", "phase-03"]
SAID = Completion((1,), (2,), (-0.1,), "x", True)


@dataclass
class Stage:
    """Stands in for actors and arena: writes down who wore what, and who wrote for which steps."""

    now: str = "itself"
    worn: list[tuple[str, str]] = field(default_factory=list)
    wrote: list[tuple[str, int]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    @contextmanager
    def wear(self, policy: Any, folder: Path | None) -> Iterator[None]:
        before = self.now
        if folder is not None:
            self.worn.append((policy.actor, folder.name))
            self.now = folder.name
        yield
        self.now = before

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        self.wrote.append((self.now, sum(map(len, seeds.values()))))
        return {
            step: [AttackPrompt(RolloutSpec(seed, group, 0), self.now, True, SAID) for group, seed in pairs]
            for step, pairs in seeds.items()
        }


def opponents(stage: Stage, tmp_path: Path, *words: str) -> Opponents:
    cfg: MagicConfig = compose("magic_sandbox", ["game.pool.draw=uniform", "game.pool.opponents=3", *words])
    state = GameState(Schedule.begin(cfg.game.schedule), snapshots={str(role): [] for role in Role})
    world: Any = SimpleNamespace(all_gather=lambda value: [value], gather_data_parallel=lambda value: [value])
    players = {role: SimpleNamespace(actor=str(role)) for role in Role}
    pair: Any = SimpleNamespace(world=world, trainable=players)
    snapshot_cache: Any = SimpleNamespace(
        use_snapshot=stage.wear, evict=lambda snapshot: stage.forgotten.append(snapshot.name)
    )
    rollouts: Any = stage
    run: Any = None
    found = Opponents(cfg, pair, rollouts, state, snapshot_cache, run)
    for role in Role:
        for i, name in enumerate(NAMES):
            folder = tmp_path / role / name
            folder.mkdir(parents=True)
            (folder / "shard").write_bytes(b"x" * 1000)
            (folder / ".metadata").write_bytes(str(folder).encode())
            snapshot: Any = SimpleNamespace(name=name, folder=folder)
            state.snapshots[role].append(snapshot)
            found.add(role, state.snapshots[role][-1], 2 * i - 1)
    return found


def seeds_of(step: int) -> list[tuple[int, Seed]]:
    return [(group, Seed(f"{step}-{group}", "ask", Label.HARMFUL)) for group in range(6)]


def test_every_drawn_attacker_writes_its_share_of_a_phase_once(tmp_path: Path) -> None:
    stage = Stage()
    pool = opponents(stage, tmp_path)
    pool.draw(Schedule(Role.DEFENDER, step=15, phase=2))
    assert sorted(pool.state.pool.slots) == sorted(NAMES)
    world: Any = SimpleNamespace(gather_data_parallel=lambda value: [value])
    rewrites = AttackPrefetcher(world, pool, seeds_of)
    taken = {step: rewrites.get(step, 30 - step) for step in range(15, 30)}
    # 15 steps × 6 seeds, a third each; the newest is there already and wears nothing.
    assert sorted(stage.wrote) == sorted([("start", 30), ("phase-01", 30), ("itself", 30)])
    assert sorted(stage.worn) == [("attacker", "phase-01"), ("attacker", "start")]
    for step, attacks in taken.items():
        assert sorted(attack.spec.group for attack in attacks) == list(range(6))
        for attack in attacks:
            name = pool.state.pool.opponent_for(step, attack.spec.group)
            assert attack.rewrite == ("itself" if name == "phase-03" else name)


def test_a_step_of_an_attacker_phase_has_one_defender(tmp_path: Path) -> None:
    stage = Stage()
    pool = opponents(stage, tmp_path)
    pool.draw(Schedule(Role.ATTACKER, step=15, phase=3))
    seen = []
    for step in range(15, 18):
        with pool.opponent_for(Role.ATTACKER, step):
            seen.append(stage.now)
    assert sorted(seen) == ["itself", "phase-01", "start"]
    assert {actor for actor, _ in stage.worn} == {"defender"}
    stage.worn.clear()
    with pool.opponent_for(Role.DEFENDER, 18):  # its attacks are written
        assert stage.now == "itself"
    assert stage.worn == []


def test_over_several_turns_a_step_of_a_defender_phase_has_one_attacker_too(tmp_path: Path) -> None:
    stage = Stage()
    pool = opponents(stage, tmp_path, "game.max_turns=2", "game.crossplay.enabled=false")
    pool.draw(Schedule(Role.DEFENDER, step=15, phase=2))
    openings = pool.defender_openings({step: seeds_of(step) for step in range(15, 18)})
    for step in range(15, 18):
        with pool.opponent_for(Role.DEFENDER, step):
            assert {attack.rewrite for attack in openings[step]} == {stage.now}


def scored(group: int, safety: Safety, attack: Completion | None = SAID, label: Label = Label.HARMFUL) -> Scored:
    episode = Episode(Seed("s", "q", label), group, 0, (Turn("r", True, attack, SAID),))
    return Scored(episode, Verdict("v", response_safety=safety), None)


@pytest.mark.parametrize(("learner", "wins"), [(Role.DEFENDER, 1.0), (Role.ATTACKER, 2.0)])
def test_games_are_counted_for_the_opponent_that_played_them(tmp_path: Path, learner: Role, wins: float) -> None:
    pool = opponents(Stage(), tmp_path)
    pool.state.pool = Pool(pool.state.pool.members, ("start", "phase-01", "phase-03"))
    group = 1 if learner is Role.DEFENDER else 4  # an attacker phase deals out steps, not groups
    games = [
        scored(group, Safety.UNSAFE), scored(group, Safety.SAFE), scored(group, Safety.SAFE),
        scored(group, Safety.UNKNOWN), scored(group, Safety.UNSAFE, label=Label.BENIGN),
        scored(group, Safety.UNSAFE, attack=None),
    ]  # fmt: skip
    name = "phase-01"
    found = pool.update_win_rates(learner, 0 if learner is Role.DEFENDER else 1, games)
    assert found == {f"train_rollouts/asr_vs_{name}": pytest.approx(1 / 3)}
    (one,) = [member for member in pool.state.pool.members[learner.opponent] if member.games]
    assert (one.name, one.wins, one.games) == (name, wins, 3.0)


def test_against_the_latest_nothing_is_worn_counted_or_drawn(tmp_path: Path) -> None:
    stage = Stage()
    pool = opponents(stage, tmp_path, "game.pool.draw=latest")
    pool.draw(Schedule(Role.DEFENDER, step=15, phase=2))
    pool.defender_openings({15: seeds_of(15)})
    with pool.opponent_for(Role.ATTACKER, 15):
        assert stage.now == "itself"
    assert pool.update_win_rates(Role.DEFENDER, 15, [scored(0, Safety.UNSAFE)]) == {}
    assert (stage.worn, stage.wrote, pool.state.pool.slots) == ([], [("itself", 6)], ())


def test_how_large_a_self_is_does_not_depend_on_where_it_is(tmp_path: Path) -> None:
    pool = opponents(Stage(), tmp_path)
    assert {member.size for members in pool.state.pool.members.values() for member in members} == {1000}


def test_whom_the_pool_lets_go_leaves_host_memory_too(tmp_path: Path) -> None:
    stage = Stage()
    pool = opponents(stage, tmp_path, f"game.pool.max_disk_gib={5500 / 2**30}")
    assert stage.forgotten.count("phase-01") == 3  # when either role kept it, and when one was let go
    assert [member.name for member in pool.state.pool.members[Role.ATTACKER]] == ["start", "phase-03"]
    with pytest.raises(TrainingError, match="game.pool.max_disk_gib"):
        opponents(stage, tmp_path / "small", f"game.pool.max_disk_gib={1500 / 2**30}")
