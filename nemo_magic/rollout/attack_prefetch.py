"""Attacks generated ahead: in a defender phase the attacker does not change, so a whole phase can be one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from nemo_magic.game.episode import Completion, Label, Seed
from nemo_magic.rollout.conversation import AttackPrompt, RolloutSpec

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World


class AttackSource(Protocol):
    """What attacks the seeds of a defender phase."""

    def defender_openings(self, seeds: Mapping[int, Sequence[tuple[int, Seed]]]) -> dict[int, list[AttackPrompt]]:
        """Step → one attack on each of its ``(group, seed)``."""


class AttackPrefetcher:
    """The openings of coming defender steps, by step. Saved with the checkpoint, so that a resumed phase plays the
    attacks it would have played.

    ``seeds_of``: step → this rank's (group, seed) pairs.
    """

    def __init__(
        self, world: World, source: AttackSource, seeds_of: Callable[[int], Sequence[tuple[int, Seed]]]
    ) -> None:
        self._world = world
        self._source = source
        self._seeds_of = seeds_of
        self._ready: dict[int, list[AttackPrompt]] = {}

    def get(self, step: int, ahead: int) -> list[AttackPrompt]:
        """The openings of ``step``; if missing, those of ``ahead`` steps from it on are generated together."""
        if step not in self._ready:
            self._ready = self._source.defender_openings({s: self._seeds_of(s) for s in range(step, step + ahead)})
        return self._ready[step]

    def invalidate(self) -> None:
        """Drop everything: the attacker is about to learn, and would write other attacks then."""
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

    def from_rows(self, rows: Sequence[Mapping[str, Any]], is_own: Callable[[int], bool]) -> None:
        """Take the rows of the groups that are this rank's own, whatever rank saved them."""
        self._ready = {}
        for row in rows:
            step_attacks = self._ready.setdefault(row["step"], [])
            if is_own(row["spec"]["group"]):
                step_attacks.append(attack_from_row(row))


def attack_from_row(row: Mapping[str, Any]) -> AttackPrompt:
    """An attack from the row that ``asdict`` made of it."""
    spec, saved = row["spec"], row["completion"]
    seed = Seed(spec["seed"]["id"], spec["seed"]["text"], Label(spec["seed"]["label"]))
    completion = None
    if saved is not None:
        completion = Completion(
            tuple(saved["prompt_ids"]),
            tuple(saved["response_ids"]),
            tuple(saved["logprobs"]),
            saved["text"],
            saved["finished"],
        )
    return AttackPrompt(RolloutSpec(seed, spec["group"], spec["sample"]), row["rewrite"], row["format_ok"], completion)
