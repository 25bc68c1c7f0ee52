"""Every kept attacker against every kept defender (Figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from nemo_magic.actors.snapshots import Snapshot, use_snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.metrics import Ratios, rollout_metrics
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.league.participants import REMOTE, SHARED
from nemo_magic.rollout.conversation import AttackPrompt, RolloutSpec
from nemo_magic.rollout.engine import RolloutEngine, fixed_attacks
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.training.policies import PolicyPair


def cross_play(
    pair: PolicyPair,
    arena: RolloutEngine,
    referee: RewardManager,
    snapshots: Mapping[str, Sequence[Snapshot]],
    seeds: Sequence[tuple[int, Seed]],
    cfg: MagicConfig,
) -> CrossPlay:
    """ASR of every attacker that was kept, and of the bare seeds, against every defender that was kept.

    Attacks are sampled as in training, and their openings shared by all defenders; defenders answer at temperature 0
    unless ``game.crossplay.sample_defender``, so that a column differs from another by the defender only. About
    ``game.crossplay.num_seeds`` games a cell: seeds of the test split, several attacks each where they are fewer.

    Raises:
        ValueError: there is no harmful test seed.
    """
    world, turns = pair.world, cfg.game.max_turns
    harmful = [(g, seed) for g, seed in seeds if seed.label is Label.HARMFUL]
    if not harmful:
        raise ValueError("cross-play needs harmful test seeds: data.test_files or data.validation_files has none")
    benign = [(g, seed) for g, seed in seeds if seed.label is Label.BENIGN]
    mine = harmful[world.dp_rank :: world.dp_size]
    per_seed = max(1, round(cfg.game.crossplay.num_seeds / len(harmful)))
    greedy = frozenset() if cfg.game.crossplay.sample_defender else frozenset({Role.DEFENDER})
    attackers = snapshots_of(pair, snapshots, Role.ATTACKER)
    openings: dict[str, list[AttackPrompt]] = {NO_REWRITE: fixed_attacks(lambda seed: seed.text, mine)}
    for name, snapshot in attackers.items():
        with playing_as(pair, Role.ATTACKER, snapshot):
            jobs = [RolloutSpec(seed, g, i) for g, seed in mine for i in range(per_seed)]
            openings[name] = arena.attack(jobs, "crossplay", 0)

    def figures(attacks: Sequence[AttackPrompt]) -> dict[str, float]:
        scored = referee.collect(referee.submit(arena.play(attacks, "crossplay", 0, greedy)))
        return Ratios.merged(world.gather_data_parallel(rollout_metrics(scored))).means()

    asr: dict[str, list[float]] = {name: [] for name in openings}
    plain: list[dict[str, float]] = []
    defenders = snapshots_of(pair, snapshots, Role.DEFENDER)
    for defender in defenders.values():
        with playing_as(pair, Role.DEFENDER, defender):
            for name, attacks in openings.items():
                # After its opening an attacker is needed for further turns only.
                with playing_as(pair, Role.ATTACKER, attackers.get(name) if turns > 1 else None):
                    asr[name].append(figures(attacks)["asr"])
            plain.append(figures(fixed_attacks(lambda seed: seed.text, benign[world.dp_rank :: world.dp_size])))
    return CrossPlay(
        attackers=list(asr),
        defenders=list(defenders),
        asr=list(asr.values()),
        num_seeds=len(harmful) * per_seed,
        over_refusal=[figure["over_refusal"] for figure in plain] if benign else [],
        useful=[figure["useful"] for figure in plain] if benign and "useful" in plain[0] else [],
    )


def snapshots_of(
    pair: PolicyPair, snapshots: Mapping[str, Sequence[Snapshot]], role: Role
) -> dict[str, Snapshot | None]:
    """Every self of ``role`` there is, oldest first; None is whoever plays the role now."""
    if role not in pair.trainable:
        return {REMOTE: None}
    return {kept.name: kept for kept in snapshots[SHARED if SHARED in snapshots else role]}


@contextmanager
def playing_as(pair: PolicyPair, role: Role, snapshot: Snapshot | None) -> Iterator[None]:
    """Within the context ``role`` is played by the snapshot; None changes nothing."""
    if snapshot is None:
        yield
    else:
        with use_snapshot(pair.trainable[role].actor, snapshot):
            yield
