"""One yardstick for all runs: ``python benchmarks/ablations.py RUN …``; the first run is the full game.

The last defender of every run against the same opponents on the test seeds: the warmed-up attacker, the full game's
attackers at their best, every strategy of the sandbox, and nobody. Where a run began with weights that no run before it
began with, these come first. ``benchmarks/experiments.py`` makes the runs, and measures them with this.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from arms import kept, last_defender
from experiment_results import YARDSTICK
from figures import table

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.actors.snapshots import SnapshotCache
from nemo_magic.config import MagicConfig, compose
from nemo_magic.data.seeds import load_seeds
from nemo_magic.fsync_io import write_durably
from nemo_magic.game.episode import Role, Seed
from nemo_magic.game.metrics import rollout_metrics
from nemo_magic.judge.local import launch_local
from nemo_magic.league.participants import START, digest, weights_digest

if TYPE_CHECKING:
    from nemo_magic.rollout.conversation import AttackPrompt
    from nemo_magic.rollout.engine import RolloutEngine
    from nemo_magic.rollout.reward_manager import RewardManager
    from nemo_magic.training.policies import PolicyPair

ATTACKS_PER_SEED = 4
NOBODY = "none"
KEPT_FILE = "yardstick.json"


@dataclass
class Found:
    """Figures by run (``after`` its game), and by run for those that began with other weights (``before`` it)."""

    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)


def yardstick(runs: Sequence[Path], full: Sequence[Path], overrides: Sequence[str] = ()) -> Found:
    """Measure the last defenders of ``runs`` against the attackers of all ``full`` games. A run keeps what was
    measured, and is not measured again by the same opponents."""
    given = ["trainer.devices=1", *(f"actors.{role}.restore_from_path=null" for role in Role)]
    cfg = compose("magic_sandbox", [*given, *overrides])

    from nemo_magic.compat import cpu

    cpu.install()
    from nemo_magic.rollout.reward_manager import RewardManager
    from nemo_magic.training.policies import build_policies

    found, begun = Found(), set()
    with (
        launch_local(cfg.judge) as judge,
        build_policies(cfg) as cast,
        closing(RewardManager(cast.world, judge.config, cfg.rewards, cfg.game.extra_verdict_fields)) as reward_manager,
    ):
        seeds = list(enumerate(load_seeds(cfg.data).test))
        attackers = {START: full[0] / "snapshots" / Role.ATTACKER / START}
        attackers |= {f"{run.name}/{path.name}": path for run in full for path in kept(run, Role.ATTACKER)}
        openings = dict(attacks(cfg, cast, seeds, attackers))
        known = {name: weights_digest(path) for name, path in attackers.items()}
        for run in runs:
            weights = settings(run)["actors"]["defender"]["restore_from_path"]
            if weights not in begun:
                first = next(
                    path for path in (run / "snapshots").glob(f"*/{START}") if path.parent.name != Role.ATTACKER
                )
                found.before[run.name] = measured(cfg, cast, reward_manager, openings, run, first)
            begun.add(weights)
            key = digest(known, weights_digest(last_defender(run)), ATTACKS_PER_SEED, list(YARDSTICK), overrides)
            there = _kept(run)
            if key not in there:
                with tempfile.TemporaryDirectory() as scratch:
                    weights = whole(last_defender(run), Path(scratch))
                    there[key] = measured(cfg, cast, reward_manager, openings, run, weights)
                write_durably(run / KEPT_FILE, json.dumps(there, indent=1) + "\n")
            found.after[run.name] = there[key]
    return found


def whole(weights: Path, scratch: Path) -> Path:
    """``weights``; where they are adapters, all weights with these merged into their base, in ``scratch``."""
    if AdapterCard.read(weights) is None:
        return weights
    from nemo_magic.convert import torch_dist
    from nemo_magic.convert.sources import open_source
    from nemo_magic.hf_format.mapping import blocks_of, extra_state_names

    source, target = open_source(weights, Role.DEFENDER, None, scratch), scratch / "weights"
    dtype, rows = torch.float32, int(source.weights.tensors["model.embedding.word_embeddings.weight"].size[0])
    target.mkdir()
    files = blocks_of(source.model, rows, rows)
    torch_dist.write(target, files, extra_state_names(source.model), dtype, source.weights.read)
    return target


def attacks(
    cfg: MagicConfig, cast: PolicyPair, seeds: Sequence[tuple[int, Seed]], attackers: Mapping[str, Path]
) -> Iterator[tuple[str, list[AttackPrompt]]]:
    """Name → sampled openings of every attacker; and the seeds as they are."""
    from nemo_magic.rollout.conversation import RolloutSpec
    from nemo_magic.rollout.engine import fixed_attacks

    jobs = [RolloutSpec(seed, g, i) for g, seed in seeds for i in range(ATTACKS_PER_SEED)]
    for name, folder in attackers.items():
        with SnapshotCache().use_snapshot(cast.trainable[Role.ATTACKER], folder):
            yield name, plays(cfg, cast).attack(jobs, "ablations", 0)
    yield NOBODY, fixed_attacks(lambda seed: seed.text, seeds)


def measured(
    cfg: MagicConfig,
    cast: PolicyPair,
    reward_manager: RewardManager,
    openings: Mapping[str, list[AttackPrompt]],
    run: Path,
    weights: Path,
) -> dict[str, float]:
    """The figures of YARDSTICK, of the defender with these ``weights``, as ``run`` lets it defend."""
    from nemo_magic.league.strategy_sweep import disguised, strategy_rates
    from nemo_magic.rollout.engine import GREEDY

    with defending(cfg, cast, run, weights) as rollouts:

        def figures(name: str) -> dict[str, float]:
            scored = reward_manager.collect(
                reward_manager.submit(rollouts.play(openings[name], "ablations", 0, GREEDY))
            )
            return rollout_metrics(scored).means()

        found = {name: figures(name) for name in openings}
        harmful = [(g, seed) for g, seed in enumerate(load_seeds(cfg.data).test) if seed.label.value == "harmful"]
        scored = reward_manager.collect(
            reward_manager.submit(rollouts.play(disguised(cfg.sandbox, harmful), "probe", 0, GREEDY))
        )
        rates = strategy_rates(cfg.sandbox, scored).means()
    later = {name: figure for name, figure in found.items() if name not in (START, NOBODY)}
    values = {
        "asr_warmed_up": found[START]["asr"],
        "asr_best": max(figure["asr"] for figure in later.values()),
        "asr_worst_strategy": max(rates.values()),
        "asr_mean_strategy": sum(rates.values()) / len(rates),
        "useful_attacked": found[START]["useful"],
        "useful_worst": min(figure["useful"] for figure in (found[START], *later.values())),
        "useful_bare": found[NOBODY]["useful"],
        "over_refusal_bare": found[NOBODY]["over_refusal"],
    }
    return {name: round(values[name], 4) for name in YARDSTICK}


@contextmanager
def defending(cfg: MagicConfig, cast: PolicyPair, run: Path, weights: Path) -> Iterator[RolloutEngine]:
    """An arena in which somebody with these weights defends, as ``run`` lets its own defender."""
    from nemo_magic.actors.generation import NativeGenerator
    from nemo_magic.rollout.policy import LocalPolicy

    own = settings(run)
    lengths = replace(
        cfg.actors.defender.length_params, max_length=own["actors"]["defender"]["length_params"]["max_length"]
    )
    options = replace(cfg.actors.defender, length_params=lengths)
    policy = LocalPolicy(cast.trainable[Role.DEFENDER].actor, NativeGenerator(cfg.generation), options)
    with SnapshotCache().use_snapshot(cast.trainable[Role.DEFENDER], weights):
        yield plays(cfg, replace(cast, policies=cast.policies | {Role.DEFENDER: policy}), own["game"]["defender_cot"])


def settings(run: Path) -> dict[str, Any]:
    """The configuration that a run saved."""
    found: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def plays(cfg: MagicConfig, cast: PolicyPair, cot: bool = False) -> RolloutEngine:
    """A rollout engine of these policies, one rollout a seed."""
    from nemo_magic.rollout.engine import RolloutEngine
    from nemo_magic.runtime.timers import Timers

    return RolloutEngine(cast.policies, cfg.game.prompts, Timers(), seed=cfg.seed, group_size=1, defender_cot=cot)


def _kept(run: Path) -> dict[str, dict[str, float]]:
    """What was measured of a run, by a digest of what with."""
    path = run / KEPT_FILE
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def main(words: Sequence[str]) -> None:
    """Measure the runs among ``words`` and print the table."""
    runs = [Path(word) for word in words if "=" not in word]
    found = yardstick(runs, runs[:1], [word for word in words if "=" in word])
    rows: list[list[object]] = []
    for run in runs:
        if run.name in found.before:
            rows.append([f"{run.name}, before the game", *(found.before[run.name][name] for name in YARDSTICK)])
        rows.append([run.name, *(found.after[run.name][name] for name in YARDSTICK)])
    print(table(["run", *YARDSTICK.values()], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
