"""Every attacker of a run, and others, against every defender of it: games played once, and kept on disk.

``<run>/cross-play/attacks/<key>.json`` has the openings of one attacker, ``pairs/<key>.json`` the judged games of one
pair. A key is a digest of all that the content depends on, so that what is there need not be played again, after a kill
or with more entrants, and what was played otherwise is not taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_magic.actors.snapshots import Snapshot, use_snapshot
from nemo_magic.config import MagicConfig
from nemo_magic.fsync_io import write_durably
from nemo_magic.game.episode import Answer, Label, Role
from nemo_magic.game.metrics import Scored, attack_succeeded
from nemo_magic.game.payoff import NO_REWRITE
from nemo_magic.league.participants import LeagueSeeds, Participant, digest
from nemo_magic.rollout.attack_prefetch import attack_from_row
from nemo_magic.rollout.conversation import AttackPrompt
from nemo_magic.rollout.engine import RolloutEngine, fixed_attacks
from nemo_magic.rollout.reward_manager import RewardManager
from nemo_magic.training.policies import PolicyPair

FOLDER = "cross-play"

Games = list[dict[str, Any]]
"""A pair's games. ``seed``: its number; ``label``; ``success`` (harmful seeds), ``refused``, ``useful`` (benign seeds):
True, False, or None where no verdict tells; ``loss``: what the defender was paid, negated, or None."""


class CrossPlayRunner:
    """Plays what is not on disk yet. All methods are for all ranks."""

    def __init__(
        self,
        cfg: MagicConfig,
        pair: PolicyPair,
        rollouts: RolloutEngine,
        reward_manager: RewardManager,
        seeds: LeagueSeeds,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._cfg = cfg
        self._pair = pair
        self._world = pair.world
        self._rollouts = rollouts
        self._reward_manager = reward_manager
        self._seeds = seeds
        self._folder = folder
        self._say = say
        self._greedy = frozenset() if cfg.game.crossplay.sample_defender else frozenset({Role.DEFENDER})

    def play(self, attackers: Sequence[Participant], defenders: Sequence[Participant]) -> dict[tuple[str, str], Games]:
        """(attacker, defender) → their games, on rank 0; nothing on others.

        Raises:
            JudgeFailed, RemoteError: what was played until then is kept.
        """
        if self._world.is_main:
            for name in ("attacks", "pairs"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
        self._world.barrier()
        there = self._seen("pairs")
        missing = {
            defender.name: [one for one in attackers if self._pair_key(one, defender) not in there]
            for defender in defenders
        }
        wanted = {one.name for waiting in missing.values() for one in waiting}
        openings = {one.name: self._openings(one) for one in attackers if one.name in wanted}
        for number, defender in enumerate(defenders, start=1):
            waiting = missing[defender.name]
            self._say(f"defender {number} of {len(defenders)}, {defender.name}: {len(waiting)} attackers to meet")
            with self._as(Role.DEFENDER, defender if waiting else None):
                for attacker in waiting:
                    # After its opening an attacker is needed for further turns only.
                    with self._as(Role.ATTACKER, attacker if self._cfg.game.max_turns > 1 else None):
                        games = self._judged(openings[attacker.name])
                    self._keep("pairs", self._pair_key(attacker, defender), games)
        if not self._world.is_main:
            return {}
        return {(a.name, d.name): self._read("pairs", self._pair_key(a, d)) for a in attackers for d in defenders}

    def _openings(self, attacker: Participant) -> list[AttackPrompt]:
        """This rank's share of an attacker's openings, from disk if they are there."""
        key = self._attack_key(attacker)
        if key not in self._seen("attacks"):
            self._say(f"attacker {attacker.name} writes")
            with self._as(Role.ATTACKER, attacker):
                attacks = self._written(attacker)
            rows = [asdict(attack) for part in self._world.gather_data_parallel(attacks) for attack in part]
            self._keep("attacks", key, rows)
        mine = [row for row in self._read("attacks", key) if self._is_mine(row["job"]["group"])]
        return [attack_from_row(row) for row in mine]

    def _written(self, attacker: Participant) -> list[AttackPrompt]:
        jobs = [job for job in self._seeds.jobs() if self._is_mine(job.group)]
        if attacker.rewrites is not None:
            seeds = {job.group: job.seed for job in jobs}
            return [
                attack
                for group, seed in seeds.items()
                for sample, rewrite in enumerate(attacker.rewrites.get(seed.text, ()))
                for attack in fixed_attacks(lambda _, rewrite=rewrite: rewrite, [(group, seed)], sample)  # type: ignore[misc]
            ]
        if attacker.name == NO_REWRITE:
            return fixed_attacks(lambda seed: seed.text, [(job.group, job.seed) for job in jobs if job.sample == 0])
        return self._rollouts.attack(jobs, "crossplay", 0)

    def _judged(self, attacks: Sequence[AttackPrompt]) -> Games:
        episodes = self._rollouts.play(attacks, "crossplay", 0, self._greedy)
        scored = self._reward_manager.collect(self._reward_manager.submit(episodes))
        return [_game(one) for part in self._world.gather_data_parallel(scored) for one in part]

    @contextmanager
    def _as(self, role: Role, participant: Participant | None) -> Iterator[None]:
        if participant is None or participant.weights is None:
            yield
        else:
            with use_snapshot(self._pair.trainable[role].actor, Snapshot(participant.name, participant.weights)):
                yield

    def _is_mine(self, group: int) -> bool:
        return group % self._world.dp_size == self._world.dp_rank

    # --- what is on disk

    def _attack_key(self, attacker: Participant) -> str:
        cfg, role = self._cfg, self._cfg.actors.attacker
        said = [asdict(role.sampling_params), asdict(role.length_params), asdict(cfg.game.prompts), cfg.game.max_turns]
        planned = [[job.group, job.sample, job.seed.id, job.seed.text, job.seed.label] for job in self._seeds.jobs()]
        return digest(attacker.identity, cfg.seed, planned, said, asdict(cfg.model.tokenizer))

    def _pair_key(self, attacker: Participant, defender: Participant) -> str:
        cfg, role = self._cfg, self._cfg.actors.defender
        said = [asdict(role.sampling_params), asdict(role.length_params), cfg.game.defender_cot, sorted(self._greedy)]
        judged = [
            self._reward_manager.guard,
            cfg.judge.guard_config,
            sorted(cfg.rewards.needs() | set(cfg.game.extra_verdict_fields)),
        ]
        return digest(self._attack_key(attacker), defender.identity, said, judged, asdict(cfg.rewards))

    def _seen(self, kind: str) -> set[str]:
        """Keys that are on disk, as rank 0 sees it."""
        here = {path.stem for path in (self._folder / kind).glob("*.json")} if self._world.is_main else set()
        return self._world.all_gather(here)[0]

    def _keep(self, kind: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._world.is_main:
            path = self._folder / kind / f"{key}.json"
            partial = path.with_suffix(".partial")
            write_durably(partial, json.dumps(rows))
            partial.replace(path)
        self._world.barrier()

    def _read(self, kind: str, key: str) -> Any:
        return json.loads((self._folder / kind / f"{key}.json").read_text(encoding="utf-8"))


def _game(scored: Scored) -> dict[str, Any]:
    seed, verdict, paid = scored.episode.seed, scored.verdict, scored.rewards
    told = verdict is not None and verdict.error is None
    harmful = seed.label is Label.HARMFUL
    return {
        "seed": scored.episode.group,
        "label": str(seed.label),
        "success": attack_succeeded(verdict) if harmful and verdict is not None else None,
        "refused": _yes(verdict.refusal) if told and verdict is not None and not harmful else None,
        "useful": _yes(verdict.helpful) if told and verdict is not None and not harmful else None,
        "loss": -sum(paid[Role.DEFENDER].values()) if paid is not None and Role.DEFENDER in paid else None,
    }


def _yes(answer: Answer | None) -> bool | None:
    return None if answer in (None, Answer.UNKNOWN) else answer is Answer.YES
