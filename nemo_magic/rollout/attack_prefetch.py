"""Attacks made ahead: in a defender phase the attacker does not change, so its whole phase can be written at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from nemo_magic.game.episode import Completion, Label, Seed
from nemo_magic.rollout.conversation import AttackPrompt, RolloutSpec

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World


class AttackWriter(Protocol):
    """Whoever attacks the seeds of a defender phase."""

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        """Step → one attack on each of its ``(group, seed)``."""


class AttackPrefetcher:
    """The openings of coming defender steps, by step. Saved with the checkpoint, so that a resumed phase plays the
    attacks it would have played.

    ``seeds_of``: step → this rank's (group, seed) pairs.
    """

    def __init__(
        self, world: World, writer: AttackWriter, seeds_of: Callable[[int], Sequence[tuple[int, Seed]]]
    ) -> None:
        self._world = world
        self._writer = writer
        self._seeds_of = seeds_of
        self._ready: dict[int, list[AttackPrompt]] = {}

    def get(self, step: int, ahead: int) -> list[AttackPrompt]:
        """The openings of ``step``; if they are not there, those of ``ahead`` steps from it on are made together."""
        if step not in self._ready:
            self._ready = self._writer.defender_openings({s: self._seeds_of(s) for s in range(step, step + ahead)})
        return self._ready[step]

    def invalidate(self) -> None:
        """The attacker is about to learn: what it wrote is no longer what it would write."""
        self._ready = {}

    def to_rows(self, since: int) -> list[dict[str, Any]]:
        """Every rank's openings of step ``since`` and later, as JSON-able rows; all ranks take part."""
        rows = [
            {"step": step, **asdict(attack)}
            for step, attacks in self._ready.items()
            if step >= since
            for attack in attacks
        ]
        return [row for part in self._world.gather_data_parallel(rows) for row in part]

    def from_rows(self, rows: Sequence[Mapping[str, Any]], mine: Callable[[int], bool]) -> None:
        """Take the rows of the groups that are ``mine``, whatever rank saved them."""
        self._ready = {}
        for row in rows:
            step_attacks = self._ready.setdefault(row["step"], [])
            if mine(row["job"]["group"]):
                step_attacks.append(attack_from_row(row))


def attack_from_row(row: Mapping[str, Any]) -> AttackPrompt:
    """An attack from the row that ``asdict`` made of it."""
    job, said = row["job"], row["completion"]
    seed = Seed(job["seed"]["id"], job["seed"]["text"], Label(job["seed"]["label"]))
    completion = None
    if said is not None:
        completion = Completion(
            tuple(said["prompt_ids"]),
            tuple(said["response_ids"]),
            tuple(said["logprobs"]),
            said["text"],
            said["finished"],
        )
    return AttackPrompt(RolloutSpec(seed, job["group"], job["sample"]), row["rewrite"], row["format_ok"], completion)
