"""The sandbox's own measure of robustness: the defender against every strategy there is.

ASR against an attacker that has collapsed makes any defender look perfect; this worst case does not depend on one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.actors.snapshots import Snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.metrics import Ratios, Scored, attack_succeeded
from nemo_magic.league.run_cross_play import playing_as, snapshots_of
from nemo_magic.rollout.conversation import AttackPrompt
from nemo_magic.rollout.engine import GREEDY, Rewriter, RolloutEngine, fixed_attacks
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.sandbox.language import MAX_ORDER, Strategy, all_strategies, parse, render
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld
from nemo_magic.training.policies import PolicyPair


def probe_strategies(
    pair: PolicyPair,
    rollouts: RolloutEngine,
    reward_manager: RewardManager,
    snapshots: Mapping[str, Sequence[Snapshot]],
    seeds: Sequence[tuple[int, Seed]],
    cfg: MagicConfig,
) -> dict[str, Any]:
    """ASR per strategy (none, every single one, every pair) on restricted test seeds, greedy, first and last defender.

    Returns ``{"start": {"worst": …, "mean": …, "asr": {strategy: …}}, "end": …}``.
    """
    world = pair.world
    mine = [(g, seed) for g, seed in seeds if seed.label is Label.HARMFUL][world.dp_rank :: world.dp_size]
    defenders = list(snapshots_of(pair, snapshots, Role.DEFENDER).values())
    found = {}
    for when, snapshot in (("start", defenders[0]), ("end", defenders[-1])):
        with playing_as(pair, Role.DEFENDER, snapshot):
            scored = reward_manager.collect(
                reward_manager.submit(rollouts.play(disguised(cfg.sandbox, mine), "probe", 0, GREEDY))
            )
        asr = Ratios.merged(world.gather_data_parallel(strategy_rates(cfg.sandbox, scored))).means()
        found[when] = {"worst": max(asr.values()), "mean": sum(asr.values()) / len(asr), "asr": asr}
    return found


def disguised(config: SandboxConfig, seeds: Sequence[tuple[int, Seed]]) -> list[AttackPrompt]:
    """Every ``(group, seed)`` under every strategy there is."""
    sandbox = SandboxWorld(config)
    strategies = [s for order in range(MAX_ORDER + 1) for s in all_strategies(order)]
    return [
        attack
        for number, strategy in enumerate(strategies)
        for attack in fixed_attacks(_disguise(sandbox, strategy), seeds, sample=number)
    ]


def strategy_rates(config: SandboxConfig, scored: Sequence[Scored]) -> Ratios:
    """ASR of each strategy by its name."""
    sandbox, ratios = SandboxWorld(config), Ratios()
    for s in scored:
        request = parse(sandbox, s.episode.turns[-1].rewrite)
        success = None if s.verdict is None else attack_succeeded(s.verdict)
        if request is not None and success is not None:
            ratios.add(request.strategy.name, success)
    return ratios


def _disguise(sandbox: SandboxWorld, strategy: Strategy) -> Rewriter:
    def rewrite(seed: Seed) -> str:
        request = parse(sandbox, seed.text)
        if request is None:
            raise ValueError(f"seed {seed.id} is no request of the sandbox: {seed.text!r}")
        return render(sandbox, strategy, request.item)

    return rewrite
