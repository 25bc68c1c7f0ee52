"""Where episodes are played: the attacker rewrites seeds, the defender answers what it sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nemo_magic.actors.build import Player
from nemo_magic.actors.generation import Generator
from nemo_magic.config import MagicConfig
from nemo_magic.game import tags
from nemo_magic.game.episode import Completion, Episode, Role, Seed, Turn
from nemo_magic.game.prompts import attacker_messages, defender_messages
from nemo_magic.training.timers import Timers


@dataclass(frozen=True)
class Job:
    """A seed to be attacked: its place in the step's global batch and which of its group's attacks this is."""

    seed: Seed
    group: int
    sample: int


@dataclass(frozen=True)
class Attack:
    """What became of a seed: the text that the defender will see. ``completion`` is None where no model wrote it."""

    job: Job
    rewrite: str
    format_ok: bool
    completion: Completion | None


class Arena:
    """Plays for this rank's share of the seeds. Every rank of a model-parallel group plays the same games.

    Samples depend on ``(seed, stream, step, role, group, sample)`` and the weights only, not on how many ranks share
    the work.
    """

    def __init__(self, cfg: MagicConfig, players: dict[Role, Player], generator: Generator, timers: Timers) -> None:
        self._cfg = cfg
        self._players = players
        self._generator = generator
        self._timers = timers

    def rollout(self, seeds: Sequence[tuple[int, Seed]], learner: Role, step: int) -> list[Episode]:
        """Training games of Algorithm 1 for ``(group, seed)`` pairs: G samples of whoever learns.

        Defender phase: one attack per seed, shared by its group of G responses; a share ``game.bare_share`` of the
        seeds is shown as it is. Attacker phase: G attacks per seed, one response to each.
        """
        size = self._cfg.game.group_size
        if learner is Role.DEFENDER:
            bare = [(group, seed) for group, seed in seeds if self._is_bare(step, group)]
            attacks = self.attack([Job(s, g, 0) for g, s in seeds if (g, s) not in bare], "train", step)
            attacks += fixed_attacks(lambda seed: seed.text, bare)
            attacks = [replace(a, job=replace(a.job, sample=i)) for a in attacks for i in range(size)]
        else:
            attacks = self.attack([Job(seed, group, i) for group, seed in seeds for i in range(size)], "train", step)
        return self.respond(attacks, "train", step)

    def duel(self, seeds: Sequence[tuple[int, Seed]]) -> list[Episode]:
        """One game per seed, both roles at temperature 0."""
        return self.respond(
            self.attack([Job(s, g, 0) for g, s in seeds], "duel", 0, greedy=True), "duel", 0, greedy=True
        )

    def attack(self, jobs: Sequence[Job], stream: str, step: int, greedy: bool = False) -> list[Attack]:
        """Let the attacker rewrite."""
        chat = self._players[Role.ATTACKER].actor.chat
        prompts = [chat.prompt_ids(attacker_messages(self._cfg.game.prompts, job.seed)) for job in jobs]
        completions = self._say(Role.ATTACKER, prompts, self._row_seeds(jobs, stream, step, Role.ATTACKER), greedy)
        parsed = [tags.parse(completion.text) for completion in completions]
        return [
            Attack(job, tagged.visible, tagged.format_ok, completion)
            for job, tagged, completion in zip(jobs, parsed, completions, strict=True)
        ]

    def respond(self, attacks: Sequence[Attack], stream: str, step: int, greedy: bool = False) -> list[Episode]:
        """Let the defender answer what the attacks show it."""
        fitted = [self._fit(attack) for attack in attacks]
        jobs = [attack.job for attack in attacks]
        completions = self._say(
            Role.DEFENDER, [ids for _, ids in fitted], self._row_seeds(jobs, stream, step, Role.DEFENDER), greedy
        )
        return [
            Episode(a.job.seed, a.job.group, a.job.sample, (Turn(rewrite, a.format_ok, a.completion, answer),))
            for a, (rewrite, _), answer in zip(attacks, fitted, completions, strict=True)
        ]

    def _say(
        self, role: Role, prompts: Sequence[Sequence[int]], row_seeds: Sequence[int], greedy: bool
    ) -> list[Completion]:
        options = self._cfg.actors.of(role)
        sampling = replace(options.sampling_params, use_greedy=True) if greedy else options.sampling_params
        with self._timers(f"generate_{role}"):
            self._generator.load(self._players[role].actor)
            try:
                return self._generator.generate(prompts, row_seeds, sampling, options.length_params)
            finally:
                self._generator.release()

    def _fit(self, attack: Attack) -> tuple[str, tuple[int, ...]]:
        """The defender's prompt; a rewrite too long for its model is shown as far as it fits."""
        actor = self._players[Role.DEFENDER].actor
        room = self._cfg.actors.defender.length_params.prompt_room(actor.cfg.encoder_seq_length)
        rewrite = attack.rewrite
        ids = actor.chat.prompt_ids(defender_messages(self._cfg.game.prompts, rewrite))
        while len(ids) > room and rewrite:
            words = actor.chat.encode(rewrite)
            rewrite = actor.chat.text(words[: max(0, len(words) - (len(ids) - room))])
            ids = actor.chat.prompt_ids(defender_messages(self._cfg.game.prompts, rewrite))
        return rewrite, ids

    def _is_bare(self, step: int, group: int) -> bool:
        return row_seed(self._cfg.seed, "bare", step, group) < self._cfg.game.bare_share * 2**64

    def _row_seeds(self, jobs: Sequence[Job], stream: str, step: int, role: Role) -> list[int]:
        return [row_seed(self._cfg.seed, stream, step, role, job.group, job.sample) for job in jobs]


Rewriter = Callable[[Seed], str]
"""A fixed attack that no model writes."""


def fixed_attacks(rewriter: Rewriter, seeds: Sequence[tuple[int, Seed]], sample: int = 0) -> list[Attack]:
    """The same trick on every seed; ``sample`` tells tricks on the same seed apart."""
    return [Attack(Job(seed, group, sample), rewriter(seed), True, None) for group, seed in seeds]


def row_seed(*parts: object) -> int:
    """A 64-bit seed that names a sample."""
    return int.from_bytes(hashlib.blake2b(repr(tuple(map(str, parts))).encode(), digest_size=8).digest(), "big")
