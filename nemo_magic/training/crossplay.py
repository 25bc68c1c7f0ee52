"""Every kept attacker against every kept defender (Figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_magic.actors.build import Player
from nemo_magic.actors.snapshots import Snapshot, worn
from nemo_magic.actors.world import World
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.metrics import Ratios, rollout_metrics
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.training.arena import Arena, Attack, Job, fixed_attacks
from nemo_magic.training.referee import Referee

if TYPE_CHECKING:
    from nemo_magic.config import MagicConfig


def cross_play(
    world: World,
    arena: Arena,
    referee: Referee,
    players: dict[Role, Player],
    snapshots: dict[Role, list[Snapshot]],
    seeds: Sequence[tuple[int, Seed]],
    cfg: MagicConfig,
) -> CrossPlay:
    """ASR of every attacker snapshot, and of the bare seeds, against every defender snapshot.

    Attacks are sampled as in training and shared by all defenders; defenders answer at temperature 0, so that a column
    differs from another by the defender only. About ``game.crossplay.num_seeds`` games a cell: seeds of the test split,
    several attacks each where they are fewer.
    """
    harmful = [(g, seed) for g, seed in seeds if seed.label is Label.HARMFUL]
    if not harmful:
        raise ValueError("cross-play needs harmful test seeds: data.test_files or data.validation_files has none")
    benign = [(g, seed) for g, seed in seeds if seed.label is Label.BENIGN]
    mine = harmful[world.dp_rank :: world.dp_size]
    per_seed = max(1, round(cfg.game.crossplay.num_seeds / len(harmful)))
    attacks: dict[str, list[Attack]] = {NO_REWRITE: fixed_attacks(lambda seed: seed.text, mine)}
    for snapshot in snapshots[Role.ATTACKER]:
        with worn(players[Role.ATTACKER].actor, snapshot):
            jobs = [Job(seed, g, i) for g, seed in mine for i in range(per_seed)]
            attacks[snapshot.name] = arena.attack(jobs, "crossplay", 0)

    asr: dict[str, list[float]] = {name: [] for name in attacks}
    plain: list[dict[str, float]] = []
    for snapshot in snapshots[Role.DEFENDER]:
        with worn(players[Role.DEFENDER].actor, snapshot):
            for name, tried in attacks.items():
                asr[name].append(_figures(world, arena, referee, tried)["asr"])
            untouched = fixed_attacks(lambda seed: seed.text, benign[world.dp_rank :: world.dp_size])
            plain.append(_figures(world, arena, referee, untouched))
    return CrossPlay(
        attackers=list(attacks),
        defenders=[snapshot.name for snapshot in snapshots[Role.DEFENDER]],
        asr=list(asr.values()),
        num_seeds=len(harmful) * per_seed,
        over_refusal=[figures["over_refusal"] for figures in plain] if benign else [],
        useful=[figures["useful"] for figures in plain] if benign and "useful" in plain[0] else [],
    )


def _figures(world: World, arena: Arena, referee: Referee, attacks: Sequence[Attack]) -> dict[str, float]:
    scored = referee.collect(referee.submit(arena.respond(attacks, "crossplay", 0, greedy=True)))
    return Ratios.merged(world.gather(rollout_metrics(scored))).means()
