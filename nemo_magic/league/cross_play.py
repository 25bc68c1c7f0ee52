"""Cross-play: every attacker against every defender on the same seeds (Figure 3 of the paper).

``cross_play`` plays the snapshots of a run against each other at its end, and keeps the matrix. ``nemo-magic
cross-play`` plays those it finds on disk, and others, and keeps the games.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_magic.actors.snapshots import Snapshot, SnapshotCache
from nemo_magic.config import MagicConfig
from nemo_magic.game.episode import Role, Seed
from nemo_magic.game.payoff import NO_REWRITE, CrossPlay
from nemo_magic.league.game_folder import GameFolder, Rows
from nemo_magic.league.games import Games, cross_play_matrix, game_row
from nemo_magic.league.participants import BARE_SEEDS, LeagueSeeds, Participant, digest, snapshots_of
from nemo_magic.rollout.attack_prefetch import attack_from_row
from nemo_magic.rollout.conversation import AttackPrompt, RolloutSpec
from nemo_magic.rollout.engine import RolloutEngine, fixed_attacks
from nemo_magic.rollout.reward_manager import RewardManager

if TYPE_CHECKING:
    from nemo_magic.training.policies import PolicyPair


def cross_play(
    pair: PolicyPair,
    rollouts: RolloutEngine,
    reward_manager: RewardManager,
    snapshots: Mapping[str, Sequence[Snapshot]],
    seeds: Sequence[tuple[int, Seed]],
    cfg: MagicConfig,
) -> CrossPlay:
    """The matrix of a run's own snapshots, and of the bare seeds; all ranks take part and have it.

    ``snapshots``: player → its snapshots, oldest first; ``seeds``: the test split's, as ``(group, seed)``.

    Raises:
        ValueError: there is no harmful test seed, or no verdict on the games of a pair.
        JudgeFailed, RemoteError: on every rank.
    """
    attackers = [BARE_SEEDS, *snapshots_of(snapshots, Role.ATTACKER)]
    defenders = snapshots_of(snapshots, Role.DEFENDER)
    league_seeds = LeagueSeeds.of_run(seeds, cfg.game.crossplay.num_seeds)
    runner = CrossPlayRunner(cfg, pair, rollouts, reward_manager, league_seeds, {}, lambda _: None)
    games = runner.play(attackers, defenders)
    return cross_play_matrix(
        [one.name for one in attackers], [one.name for one in defenders], games, league_seeds.attacks_per_pair
    )


class CrossPlayRunner:
    """Plays the games that ``store`` does not have yet. All methods are for all ranks.

    Attackers sample as in training, and all defenders answer the same openings; defenders answer at temperature 0
    unless ``game.crossplay.sample_defender``, so that one column differs from another by the defender only.

    ``store``: rows by key, a folder or (for this process only) a dict. A key is a digest of all that the rows depend
    on, so that no other games are ever taken for them.
    """

    def __init__(
        self,
        cfg: MagicConfig,
        pair: PolicyPair,
        rollouts: RolloutEngine,
        reward_manager: RewardManager,
        seeds: LeagueSeeds,
        store: GameFolder | dict[str, Rows],
        log: Callable[[str], None],
    ) -> None:
        self._cfg = cfg
        self._pair = pair
        self._world = pair.world
        self._rollouts = rollouts
        self._reward_manager = reward_manager
        self._seeds = seeds
        self._store = store
        self._log = log
        self._greedy = frozenset() if cfg.game.crossplay.sample_defender else frozenset({Role.DEFENDER})
        # By place, not by group: in a run's numbers the labels may alternate, and one rank would have all attacks.
        self._ranks = {group: i % pair.world.dp_size for i, (group, _) in enumerate(seeds.numbered)}

    def play(self, attackers: Sequence[Participant], defenders: Sequence[Participant]) -> dict[tuple[str, str], Games]:
        """(attacker, defender) → their games.

        Raises:
            JudgeFailed, RemoteError: on every rank; the store keeps what was played until then.
        """
        keys = {(a.name, d.name): f"pairs/{self._pair_key(a, d)}" for a in attackers for d in defenders}
        missing = {d.name: [a for a in attackers if keys[a.name, d.name] not in self._store] for d in defenders}
        needed = {attacker.name for waiting in missing.values() for attacker in waiting}
        openings = {attacker.name: self._openings(attacker) for attacker in attackers if attacker.name in needed}
        for number, defender in enumerate(defenders, start=1):
            waiting = missing[defender.name]
            self._log(f"defender {number} of {len(defenders)}, {defender.name}: {len(waiting)} attackers to meet")
            with self._use(Role.DEFENDER, defender.weights if waiting else None):
                for attacker in waiting:
                    # After its opening an attacker is needed for further turns only.
                    with self._use(Role.ATTACKER, attacker.weights if self._cfg.game.max_turns > 1 else None):
                        self._store[keys[attacker.name, defender.name]] = self._play_pair(openings[attacker.name])
        return {pair: self._store[key] for pair, key in keys.items()}

    def _openings(self, attacker: Participant) -> list[AttackPrompt]:
        """This rank's share of an attacker's openings."""
        key = f"attacks/{self._attack_key(attacker)}"
        if key not in self._store:
            self._log(f"attacker {attacker.name} writes")
            with self._use(Role.ATTACKER, attacker.weights):
                attacks = self._write_openings(attacker)
            self._store[key] = [asdict(attack) for part in self._world.gather_data_parallel(attacks) for attack in part]
        return [attack_from_row(row) for row in self._store[key] if self._is_mine(row["spec"]["group"])]

    def _write_openings(self, attacker: Participant) -> list[AttackPrompt]:
        seeds = [(group, seed) for group, seed in self._seeds.numbered if self._is_mine(group)]
        if attacker.rewrites is not None:
            return [
                AttackPrompt(RolloutSpec(seed, group, sample), rewrite, True, None)
                for group, seed in seeds
                for sample, rewrite in enumerate(attacker.rewrites.get(seed.text, ()))
            ]
        if attacker.name == NO_REWRITE:
            return fixed_attacks(lambda seed: seed.text, seeds)
        specs = [spec for spec in self._seeds.rollout_specs() if self._is_mine(spec.group)]
        return self._rollouts.attack(specs, "crossplay", 0)

    def _play_pair(self, openings: Sequence[AttackPrompt]) -> Games:
        """The judged games of all ranks from this rank's ``openings`` and theirs."""
        episodes = self._rollouts.play(openings, "crossplay", 0, self._greedy)
        scored = self._reward_manager.collect(self._reward_manager.submit(episodes))
        return [game_row(one) for part in self._world.gather_data_parallel(scored) for one in part]

    def _use(self, role: Role, weights: Path | None) -> AbstractContextManager[None]:
        return SnapshotCache().use_snapshot(self._pair.trainable.get(role), weights)

    def _is_mine(self, group: int) -> bool:
        return self._ranks[group] == self._world.dp_rank

    def _attack_key(self, attacker: Participant) -> str:
        cfg, role = self._cfg, self._cfg.actors.attacker
        sampling = [
            asdict(role.sampling_params),
            asdict(role.length_params),
            asdict(cfg.game.prompts),
            cfg.game.max_turns,
        ]
        specs = [
            [spec.group, spec.sample, spec.seed.id, spec.seed.text, spec.seed.label]
            for spec in self._seeds.rollout_specs()
        ]
        return digest(attacker.identity, cfg.seed, specs, sampling, asdict(cfg.model.tokenizer))

    def _pair_key(self, attacker: Participant, defender: Participant) -> str:
        cfg, role = self._cfg, self._cfg.actors.defender
        sampling = [
            asdict(role.sampling_params),
            asdict(role.length_params),
            cfg.game.defender_cot,
            sorted(self._greedy),
        ]
        judge = [
            self._reward_manager.guard,
            cfg.judge.guard_config,
            sorted(cfg.rewards.needs() | set(cfg.game.extra_verdict_fields)),
        ]
        return digest(self._attack_key(attacker), defender.identity, sampling, judge, cfg.rewards.identity())
