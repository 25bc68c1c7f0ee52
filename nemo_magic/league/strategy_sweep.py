"""The sandbox's own measure of robustness: the defender against every strategy of its language.

Any defender looks perfect against an attacker that has collapsed; this worst case depends on no attacker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_magic.actors.snapshots import Snapshot, SnapshotCache
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.metrics import Ratios, Scored, attack_succeeded
from nemo_magic.league.participants import snapshots_of
from nemo_magic.rollout.conversation import AttackPrompt
from nemo_magic.rollout.engine import GREEDY, Rewriter, RolloutEngine, fixed_attacks
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.sandbox.language import MAX_ORDER, Strategy, all_strategies, parse, render
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld

if TYPE_CHECKING:
    from nemo_magic.training.policies import PolicyPair


def sweep_strategies(
    pair: PolicyPair,
    rollouts: RolloutEngine,
    reward_manager: RewardManager,
    snapshots: Mapping[str, Sequence[Snapshot]],
    seeds: Sequence[tuple[int, Seed]],
    cfg: MagicConfig,
) -> dict[str, Any]:
    """ASR of the first and the last defender at temperature 0, per strategy: none, every single one, every pair.

    ``seeds``: ``(group, seed)``, of which the harmful ones are played.

    Returns ``{"start": {"worst": …, "mean": …, "asr": {strategy: …}}, "end": …}``, ASR in 0..1.

    Raises:
        JudgeFailed, RemoteError: on every rank.
        ValueError: a seed is no request of the sandbox.
    """
    world = pair.world
    share = [(g, seed) for g, seed in seeds if seed.label is Label.HARMFUL][world.dp_rank :: world.dp_size]
    defenders = snapshots_of(snapshots, Role.DEFENDER)
    results = {}
    for when, defender in (("start", defenders[0]), ("end", defenders[-1])):
        with SnapshotCache().use_snapshot(pair.trainable.get(Role.DEFENDER), defender.weights):
            scored = reward_manager.collect(
                reward_manager.submit(rollouts.play(disguised(cfg.sandbox, share), "probe", 0, GREEDY))
            )
        asr = Ratios.merged(world.gather_data_parallel(strategy_rates(cfg.sandbox, scored))).means()
        results[when] = {"worst": max(asr.values()), "mean": sum(asr.values()) / len(asr), "asr": asr}
    return results


def disguised(config: SandboxConfig, seeds: Sequence[tuple[int, Seed]]) -> list[AttackPrompt]:
    """An attack per strategy on every ``(group, seed)``; ``sample`` is the number of the strategy.

    Raises:
        ValueError: a seed is no request of the sandbox.
    """
    sandbox = SandboxWorld(config)
    strategies = [s for order in range(MAX_ORDER + 1) for s in all_strategies(order)]
    return [
        attack
        for number, strategy in enumerate(strategies)
        for attack in fixed_attacks(_disguise(sandbox, strategy), seeds, sample=number)
    ]


def strategy_rates(config: SandboxConfig, scored: Sequence[Scored]) -> Ratios:
    """Strategy's name → ASR in the making, over the games whose last attack parses and is judged."""
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
