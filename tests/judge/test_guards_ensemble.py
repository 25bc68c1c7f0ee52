import asyncio
import json
from itertools import product

import pytest

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards import build_guard
from nemo_magic.judge.guards.base import ComputedGuard, Opinion
from nemo_magic.judge.guards.ensemble import RULES, combine
from nemo_magic.judge.protocol import Ask, has_unknown, match_answers
from tests.judge.guard_models import Remembering, talk
from tests.judge.keyword_guards import AbsentGuard, BrokenBatchGuard, KeywordGuard

S, C, U, X = Safety.SAFE, Safety.CONTROVERSIAL, Safety.UNSAFE, Safety.UNKNOWN
Y, N, Z = Answer.YES, Answer.NO, Answer.UNKNOWN


class Says(ComputedGuard):
    """Says of every response what ``says`` maps the fields to; answers those only."""

    def __init__(self, **says):
        self.name = "says"
        self.revision = json.dumps(says, sort_keys=True)
        self.answers = frozenset(Ask(field) for field in says)
        self._says = says

    @classmethod
    def answers_of(cls, config):
        return frozenset(Ask(field) for field in config)

    def opinion(self, item):
        kinds = {Ask.PROMPT_SAFETY: Safety, Ask.RESPONSE_SAFETY: Safety}
        told = {field: kinds.get(Ask(field), Answer)(value) for field, value in self._says.items()}
        return Opinion(**told, categories=(f"of {self.revision}",))


def ensemble(*members, rule="any"):
    guards = {f"member {i}": {"guard": f"{__name__}:Says"} | says for i, says in enumerate(members)}
    return build_guard("ensemble", {"guards": guards, "rule": rule})


def judged(guard, *items):
    return match_answers(items, asyncio.run(guard.judge(items)))


@pytest.mark.parametrize(
    ("field", "votes", "of_any", "of_most"),
    [
        ("response_safety", (S, S, S), S, S),
        ("response_safety", (S, S, U), U, S),
        ("response_safety", (S, S, C), C, S),
        ("response_safety", (S, U, C), U, U),
        ("response_safety", (S, C, C), C, C),
        ("response_safety", (U, U, C), U, U),
        ("response_safety", (S, S, X), X, S),
        ("response_safety", (S, X, X), X, X),
        ("response_safety", (U, X, X), U, X),
        ("response_safety", (S, U), U, X),
        ("response_safety", (X, X), X, X),
        ("response_safety", (), X, X),
        ("refusal", (Y, N, N), Y, N),
        ("refusal", (N, N, Z), Z, N),
        ("helpful", (Y, Y, N), N, Y),
        ("helpful", (Y, Z, N), N, Z),
        ("intent_preserved", (Y, Y), Y, Y),
        ("intent_preserved", (Y, Z), Z, Z),
    ],
)
def test_votes_come_to(field, votes, of_any, of_most):
    assert combine("any", Ask(field), votes) is of_any
    assert combine("majority", Ask(field), votes) is of_most


@pytest.mark.parametrize("rule", RULES)
def test_a_text_is_cleared_only_by_those_who_clear_it(rule):
    for votes in product((S, C, U, X), repeat=3):
        verdict = combine(rule, Ask.RESPONSE_SAFETY, votes)
        if verdict is S:
            assert votes.count(S) == 3 or (rule == "majority" and votes.count(S) == 2)
        if rule == "any" and (U in votes or C in votes):
            assert verdict in (U, C)
        # Whoever stops telling never makes a verdict milder than unknown.
        for i in range(3):
            blind = combine(rule, Ask.RESPONSE_SAFETY, (*votes[:i], X, *votes[i + 1 :]))
            assert blind is not S or verdict is S


def test_members_are_asked_what_they_can_tell_and_what_they_differ_on_is_said():
    guard, observer = (
        ensemble({"response_safety": "safe", "refusal": "no"}, {"response_safety": "unsafe"}),
        Remembering(),
    )
    guard.set_telemetry(observer)
    assert guard.answers == {Ask.RESPONSE_SAFETY, Ask.REFUSAL}
    [both, one] = judged(guard, talk("1", "ask", "reply", "response_safety", "refusal"), talk("2", "a", "b", "refusal"))
    assert (both.response_safety, both.refusal, both.disagreed) == (U, N, (Ask.RESPONSE_SAFETY,))
    assert both.error is None
    assert len(both.categories) == 2
    assert (one.refusal, one.disagreed, len(one.categories)) == (N, (), 1)
    assert observer.counts["disagreements"] == 1
    assert both.to_verdict().disagreed == ("response_safety",)


def test_what_no_rule_settles_is_unknown_and_says_why():
    guard = ensemble({"refusal": "yes"}, {"refusal": "no"}, rule="majority")
    [verdict] = judged(guard, talk("1", "ask", "reply", "refusal", "helpful"))
    assert (verdict.refusal, verdict.helpful) == (Z, Z)
    assert verdict.error == "its guards leave helpful, refusal open"
    assert verdict.disagreed == (Ask.REFUSAL,)


def test_a_member_that_fails_clears_nothing():
    guard = ensemble({"response_safety": "safe"}, {"response_safety": "safe"})
    guard._members[1] = BrokenBatchGuard()
    [verdict] = judged(guard, talk("1"))
    assert verdict.response_safety is X
    assert verdict.disagreed == ()
    assert verdict.error == "keyword@1: ZeroDivisionError: a bug"


def test_a_member_that_is_away_is_waited_for():
    guard = ensemble({"response_safety": "safe"}, {"response_safety": "safe"})
    guard._members[1] = AbsentGuard()
    with pytest.raises(GuardUnavailable):
        asyncio.run(guard.judge([talk("1")]))


def test_an_ensemble_is_who_its_members_are():
    one, same = (ensemble({"refusal": "yes"}, {"refusal": "no"}) for _ in range(2))
    assert one.revision == same.revision
    assert one.revision != ensemble({"refusal": "yes"}, {"refusal": "yes"}).revision
    assert one.revision != ensemble({"refusal": "yes"}, {"refusal": "no"}, rule="majority").revision


def test_the_probe_of_an_ensemble_is_one_that_all_members_can_judge():
    class Local(KeywordGuard):
        @property
        def probe(self):
            return talk("probe", "a word of this world", "reply", *Ask)

    guard = ensemble({"refusal": "yes"}, {"response_safety": "safe"})
    assert set(guard.probe.ask) == guard.answers
    assert not has_unknown(judged(guard, guard.probe)[0])
    guard._members[1] = Local()
    assert guard.probe.prompt == "a word of this world"
    assert not has_unknown(judged(guard, guard.probe)[0])


def test_an_ensemble_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"rule='most' must be one of: any, majority"):
        ensemble({"refusal": "yes"}, {"refusal": "no"}, rule="most")
    with pytest.raises(ValueError, match="must be at least two: one guard"):
        ensemble({"refusal": "yes"})
