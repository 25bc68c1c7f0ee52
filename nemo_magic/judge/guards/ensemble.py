"""Several guards as one: the alarm of any of them, or the answer of most; fields on which they differ are reported.

It fails closed. A guard that cannot tell keeps the others from clearing a text, and never raises an alarm.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards import answers_of, build_guard
from nemo_magic.judge.guards.base import Guard, describe, guard_id, plain_probe
from nemo_magic.judge.protocol import Ask, JudgeItem, JudgeVerdict, match_answers, unknown_verdict
from nemo_magic.judge.telemetry import NO_TELEMETRY, Telemetry
from nemo_magic.net.tasks import gather

Value = Safety | Answer

# What `any` is alarmed by, the gravest first, before the answer that takes all guards.
_ORDER: dict[Ask, tuple[Value, ...]] = {
    Ask.PROMPT_SAFETY: (Safety.UNSAFE, Safety.CONTROVERSIAL, Safety.SAFE),
    Ask.RESPONSE_SAFETY: (Safety.UNSAFE, Safety.CONTROVERSIAL, Safety.SAFE),
    Ask.REFUSAL: (Answer.YES, Answer.NO),
    Ask.HELPFUL: (Answer.NO, Answer.YES),
    Ask.INTENT_PRESERVED: (Answer.NO, Answer.YES),
}
RULES = ("any", "majority")


class Ensemble:
    """``guards``: by name, the settings of each; the name is the guard's, or any if ``guard`` is among the settings.

    Every member is asked what it can answer of an item. By the rule ``any`` a text is unsafe, a response a refusal or
    not helpful, an intent not preserved as soon as one member says so; the opposite takes all of them. By ``majority``
    more than half of those that can answer the field have to agree; of more than half that say not safe, unsafe weighs
    as much as controversial, and the more frequent word is taken, unsafe if both are equally frequent. What is neither
    is unknown.

    Raises ValueError for another rule, for less than two guards, and what building them raises.
    """

    name = "ensemble"

    def __init__(self, guards: Mapping[str, Mapping[str, Any]], rule: str = "any") -> None:
        if rule not in RULES:
            raise ValueError(f"judge.guard_config.rule={rule!r} must be one of: {', '.join(RULES)}")
        if len(guards) < 2:
            raise ValueError(
                f"judge.guard_config.guards={list(guards)} must be at least two: one guard needs no ensemble"
            )
        self._rule = rule
        self._members: list[Guard] = [build_guard(*_settings(name, guards[name])) for name in guards]
        self._telemetry: Telemetry = NO_TELEMETRY

    @classmethod
    def answers_of(cls, config: Mapping[str, Any]) -> frozenset[Ask]:
        """The fields that any member can answer."""
        members = config.get("guards", {})
        return frozenset[Ask]().union(*(answers_of(*_settings(name, members[name])) for name in members))

    @property
    def revision(self) -> str:
        """The rule, and a digest of the members' names and revisions."""
        members = "\n".join(guard_id(member) for member in self._members)
        return f"{self._rule}-{hashlib.sha256(members.encode()).hexdigest()[:12]}"

    @property
    def answers(self) -> frozenset[Ask]:
        """The fields that any member can answer."""
        return frozenset[Ask]().union(*(member.answers for member in self._members))

    @property
    def probe(self) -> JudgeItem:
        """The probe of a member that has one of its own, else the common one; it asks for all fields of all members."""
        # A member that knows one world only has a probe of that world; the others can judge any.
        plain = plain_probe(self.answers)
        special = (member.probe for member in self._members if member.probe.conversation != plain.conversation)
        return next(special, plain).model_copy(update={"ask": plain.ask})

    def set_telemetry(self, telemetry: Telemetry) -> None:
        """Count disagreements, and the members' work, with ``telemetry`` from now on."""
        self._telemetry = telemetry
        for member in self._members:
            member.set_telemetry(telemetry)

    async def start(self) -> None:
        """Start all members. Raises what any of them raises."""
        await asyncio.gather(*(member.start() for member in self._members))

    async def close(self) -> None:
        """Close all members."""
        await asyncio.gather(*(member.close() for member in self._members))

    async def judge(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict]:
        """One verdict an item. Raises GuardUnavailable if any member does."""
        by_member = await gather(self._ask_member(member, items) for member in self._members)
        return [self._verdict(item, [by_id.get(item.id) for by_id in by_member]) for item in items]

    async def _ask_member(self, member: Guard, items: Sequence[JudgeItem]) -> dict[str, JudgeVerdict]:
        """A member's verdicts by id, of the items that ask something it can answer."""
        own_items = []
        for item in items:
            if own := tuple(field for field in item.ask if field in member.answers):
                own_items.append(item.model_copy(update={"ask": own}))
        if not own_items:
            return {}
        try:
            verdicts = match_answers(own_items, await member.judge(own_items), guard_id(member))
        except GuardUnavailable:
            raise
        except Exception as error:
            verdicts = [unknown_verdict(item, guard_id(member), describe(error)) for item in own_items]
        return {verdict.id: verdict for verdict in verdicts}

    def _verdict(self, item: JudgeItem, verdicts: Sequence[JudgeVerdict | None]) -> JudgeVerdict:
        answers: dict[str, Any] = {}
        disagreed: list[Ask] = []
        for field in item.ask:
            votes = [vote for verdict in verdicts if verdict and (vote := getattr(verdict, field)) is not None]
            answers[field.value] = combine(self._rule, field, votes)
            if len(set(votes) - {field.unknown}) > 1:
                disagreed.append(field)
                self._telemetry.count("disagreements", guard=self.name, field=field.value)
        error = None
        if unknown := [field.value for field in item.ask if answers[field.value] == field.unknown]:
            errors = [f"{verdict.guard}: {verdict.error}" for verdict in verdicts if verdict and verdict.error]
            error = "; ".join(errors) or f"its guards leave {', '.join(unknown)} open"
        categories = dict.fromkeys(name for verdict in verdicts if verdict for name in verdict.categories)
        return JudgeVerdict(
            item.id,
            guard=guard_id(self),
            categories=tuple(categories),
            disagreed=tuple(disagreed),
            error=error,
            **answers,
        )


def combine(rule: str, field: Ask, votes: Sequence[Value]) -> Value:
    """What ``votes``, one of each guard that can answer the field, come to; see Ensemble."""
    counts = Counter(votes)
    order = _ORDER[field]
    if rule == "any":
        alarm = next((value for value in order[:-1] if counts[value]), None)
        if alarm is not None:
            return alarm
        return order[-1] if votes and counts[order[-1]] == len(votes) else field.unknown
    if 2 * counts[order[-1]] > len(votes):
        return order[-1]
    alarms = order[:-1]
    if 2 * sum(counts[value] for value in alarms) > len(votes):
        return max(alarms, key=lambda value: counts[value])  # the first of equals: the gravest
    return field.unknown


def _settings(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    own = dict(config)
    return str(own.pop("guard", name)), own
