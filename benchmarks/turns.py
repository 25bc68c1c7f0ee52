"""The tables of docs/multi_turn.md, from finished runs: ``python benchmarks/turns.py FOLDER … [key=value …]``.

Every run's last attacker, at the number of turns it was trained at, against the first defender and the last one of
every run that trained one, both sides sampled, on the test seeds. ``make turns`` makes the runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig, compose
from nemo_magic.data.seeds import load_seeds
from nemo_magic.game.episode import Label, Role
from nemo_magic.game.metrics import Ratios, Scored, rollout_metrics
from nemo_magic.judge.local import launch_local
from nemo_magic.sandbox.language import parse
from nemo_magic.sandbox.rules import REFUSAL
from nemo_magic.sandbox.world import SandboxWorld

if TYPE_CHECKING:
    from nemo_magic.rollout.reward_manager import RewardManager
    from nemo_magic.training.policies import PolicyPair

GAMES_PER_SEED = 32


def last_of(run: Path, role: Role) -> Snapshot | None:
    """The role as a run left it, or None where it did not learn."""
    kept = sorted((run / "snapshots" / role).glob("phase-*"))
    return Snapshot(run.name, kept[-1]) if kept else None


def attackers(runs: Sequence[Path]) -> Iterator[tuple[int, Snapshot]]:
    """(turns, attacker): the warmed-up one at all numbers of turns there are, then every run's last one at its own."""
    turns = [yaml.safe_load((run / "config.yaml").read_text())["game"]["max_turns"] for run in runs]
    for number in sorted(set(turns)):
        yield number, Snapshot("warmed up", runs[0] / "snapshots" / Role.ATTACKER / "start")
    for run, number in zip(runs, turns, strict=True):
        last = last_of(run, Role.ATTACKER)
        if last is not None:
            yield number, last


def defenders(runs: Sequence[Path]) -> Iterator[Snapshot]:
    yield Snapshot("first defender", runs[0] / "snapshots" / Role.DEFENDER / "start")
    yield from (last for run in runs if (last := last_of(run, Role.DEFENDER)) is not None)


def habits(world: SandboxWorld, scored: Sequence[Scored]) -> Ratios:
    """How often the next turn keeps the disguise, after a refusal and after a delivery; restricted seeds."""
    ratios = Ratios()
    for episode in (s.episode for s in scored if s.episode.seed.label is Label.HARMFUL):
        for before, after in zip(episode.turns, episode.turns[1:], strict=False):
            was, now = parse(world, before.rewrite), parse(world, after.rewrite)
            if was is not None and now is not None:
                refused = before.defence.text.startswith(REFUSAL)
                ratios.add("kept after refusal" if refused else "kept after delivery", was.strategy == now.strategy)
    return ratios


def measure(cfg: MagicConfig, pair: PolicyPair, reward_manager: RewardManager, runs: Sequence[Path]) -> None:
    from nemo_magic.league.run_cross_play import playing_as
    from nemo_magic.rollout.conversation import RolloutSpec
    from nemo_magic.rollout.engine import RolloutEngine
    from nemo_magic.runtime.timers import Timers

    data, world = load_seeds(cfg.data), SandboxWorld(cfg.sandbox)
    jobs = [RolloutSpec(seed, g, i) for g, seed in enumerate(data.test) for i in range(GAMES_PER_SEED)]
    columns = list(defenders(runs))
    print_row("attacker", "turns", *(f"ASR, {d.name}" for d in columns), *(f"useful, {d.name}" for d in columns),
              "keeps its disguise after a delivery", "after a refusal")  # fmt: skip
    print_row(*["---"] * (4 + 2 * len(columns)))
    for turns, attacker in attackers(runs):
        rollouts = RolloutEngine(
            pair.policies, cfg.game.prompts, Timers(), seed=cfg.seed, group_size=1, max_turns=turns
        )
        with playing_as(pair, Role.ATTACKER, attacker):
            openings, rows = rollouts.attack(jobs, "turns", 0), []
            for defender in columns:
                with playing_as(pair, Role.DEFENDER, defender):
                    rows.append(reward_manager.collect(reward_manager.submit(rollouts.play(openings, "turns", 0))))
        figures = [rollout_metrics(row).means() for row in rows]
        kept = habits(world, rows[0]).means()
        print_row(attacker.name, turns, *(share(f["asr"]) for f in figures), *(share(f["useful"]) for f in figures),
                  *(share(kept.get(f"kept after {reply}")) for reply in ("delivery", "refusal")))  # fmt: skip


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main(words: Sequence[str]) -> None:
    runs = [Path(word) for word in words if "=" not in word]
    # The measured weights are put on later; what a player starts with does not matter.
    given = ["trainer.devices=1", *(f"actors.{role}.restore_from_path=null" for role in Role)]
    cfg = compose("magic_sandbox_turns", [*given, *(word for word in words if "=" in word)])

    from nemo_magic.compat import cpu

    cpu.install()
    from nemo_magic.rollout.reward_manager import RewardManager
    from nemo_magic.training.policies import build_policies

    with (
        launch_local(cfg.judge) as judge,
        build_policies(cfg) as pair,
        closing(RewardManager(pair.world, judge.config, cfg.rewards, cfg.game.extra_verdict_fields)) as reward_manager,
    ):
        measure(cfg, pair, reward_manager, runs)


if __name__ == "__main__":
    main(sys.argv[1:])
