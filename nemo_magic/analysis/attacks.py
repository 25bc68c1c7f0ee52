"""What the attacker wrote, as the run saved it: one attack is what a model wrote in a conversation, turn by turn."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_magic.report.conversations import outcome
from nemo_magic.report.series import Phase
from nemo_magic.rollout.response_cache import cache_key

SUCCEEDED, NO_VERDICT = "attack succeeded", "no verdict"


@dataclass(frozen=True)
class AttackRecord:
    """``messages``: what the defender was shown of what the attacker wrote. ``samples``: those of the group that it is
    the attack of; what is told is of the first. ``intent``: whether the seed's intent is kept, None where that was not
    asked, or is unknown. ``phase``: the phase of its step, where it is known."""

    step: int
    group: int
    samples: tuple[int, ...]
    seed: str
    harmful: bool
    messages: tuple[str, ...]
    outcome: str
    intent: bool | None
    phase: Phase | None

    @property
    def text(self) -> str:
        return "\n".join(self.messages).strip()

    @property
    def order(self) -> str:
        """By which samples are drawn: in no order that means anything, and always in the same."""
        return cache_key(self.step, self.group, self.samples[0], self.seed, self.messages)


def attacks_of(rows: Sequence[Mapping[str, Any]], phases: Sequence[Phase]) -> list[AttackRecord]:
    """The attacks in saved conversations, in order.

    Seeds that were shown as they are count for nothing. While the defender learns, one attack is shared by a group: it
    counts once.
    """
    starts = [phase.first for phase in phases]
    found: dict[tuple[Any, ...], AttackRecord] = {}
    for row in rows:
        messages = tuple(turn["rewrite"] or "" for turn in row["turns"] if turn["attack"] is not None)
        if not messages:
            continue
        number = bisect_right(starts, row["step"]) - 1
        phase = phases[number] if number >= 0 and row["step"] <= phases[number].last else None
        verdict = row["verdict"] or {}
        said = None if verdict.get("error") else verdict.get("intent_preserved")
        attack = AttackRecord(
            row["step"], row["group"], (row["sample"],), row["seed"]["text"], row["seed"]["label"] == "harmful",
            messages, outcome(row), {"yes": True, "no": False}.get(str(said)), phase,
        )  # fmt: skip
        shared = phase is not None and phase.learner == "defender"
        key = (shared, attack.step, attack.group, messages if shared else row["sample"])
        if (first := found.setdefault(key, attack)) is not attack:
            found[key] = replace(first, samples=(*first.samples, row["sample"]))
    return list(found.values())
