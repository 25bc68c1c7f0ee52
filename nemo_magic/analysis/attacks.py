"""The attacks in a run's saved conversations: one attack is what the attacker wrote in a conversation, turn by turn."""

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
    """One attack. ``messages``: the visible part of what the attacker wrote. ``samples``: the conversations of the
    group with this attack; the other fields are those of the first. ``intent``: whether the seed's intent is kept, None
    where that was not judged, or is unknown. ``phase``: the phase of its step, where it is known."""

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
        """All messages."""
        return "\n".join(self.messages).strip()

    @property
    def order(self) -> str:
        """The key that samples are drawn by: an arbitrary order, and always the same."""
        return cache_key(self.step, self.group, self.samples[0], self.seed, self.messages)


def attacks_of(rows: Sequence[Mapping[str, Any]], phases: Sequence[Phase]) -> list[AttackRecord]:
    """The attacks in saved conversations, in order.

    Conversations that began with a raw seed have none, and a message without text, which no defender was shown, is
    none. While the defender learns, a group shares one attack: it counts once.
    """
    starts = [phase.first for phase in phases]
    attacks: dict[tuple[Any, ...], AttackRecord] = {}
    for row in rows:
        messages = tuple(turn["rewrite"] or "" for turn in row["turns"] if _is_attack(turn))
        if not messages:
            continue
        number = bisect_right(starts, row["step"]) - 1
        phase = phases[number] if number >= 0 and row["step"] <= phases[number].last else None
        verdict = row["verdict"] or {}
        intent = None if verdict.get("error") else verdict.get("intent_preserved")
        attack = AttackRecord(
            row["step"], row["group"], (row["sample"],), row["seed"]["text"], row["seed"]["label"] == "harmful",
            messages, outcome(row), {"yes": True, "no": False}.get(str(intent)), phase,
        )  # fmt: skip
        shared = phase is not None and phase.learner == "defender"
        key = (shared, attack.step, attack.group, messages if shared else row["sample"])
        if (first := attacks.setdefault(key, attack)) is not attack:
            attacks[key] = replace(first, samples=(*first.samples, row["sample"]))
    return list(attacks.values())


def _is_attack(turn: Mapping[str, Any]) -> bool:
    return turn["attack"] is not None and turn["response"] is not None
