import json

import pytest
from pydantic import ValidationError

from nemo_magic.game.episode import (
    VERDICT_FIELDS,
    Answer,
    Completion,
    Episode,
    Label,
    Message,
    Safety,
    Seed,
    Turn,
    Verdict,
)
from nemo_magic.game.rewards import RewardConfig
from nemo_magic.judge.errors import ProtocolError
from nemo_magic.judge.protocol import (
    Ask,
    JudgeAnswer,
    JudgeBatch,
    JudgeItem,
    JudgeVerdict,
    has_unknown,
    make_item,
    match_answers,
    to_request,
    unknown_verdict,
)

TALK = (Message("user", "q"), Message("assistant", "a"))


def completion(text: str) -> Completion:
    return Completion((1,), (2,), (-0.1,), text, True)


def test_an_episode_becomes_an_item_with_what_the_defender_saw_and_said():
    turns = tuple(Turn(f"ask {n}", True, completion("<think>plan</think>"), completion(f"say {n}")) for n in (1, 2))
    episode = Episode(Seed("s7", "the seed", Label.HARMFUL), group=3, sample=1, turns=turns)
    item = to_request(episode, RewardConfig(help=0.5, intent_gate=True).needs())
    assert item.id == "s7#3.1"
    assert [(m.role, m.content) for m in item.conversation] == [
        ("user", "ask 1"),
        ("assistant", "say 1"),
        ("user", "ask 2"),
        ("assistant", "say 2"),
    ]
    assert (item.prompt, item.response) == ("ask 2", "say 2")
    assert item.seed is not None
    assert (item.seed.text, item.seed.label) == ("the seed", Label.HARMFUL)
    assert set(item.ask) == {"response_safety", "refusal", "helpful", "intent_preserved"}


def test_what_can_be_asked_are_the_fields_of_a_verdict_that_a_guard_answers():
    assert tuple(Ask) == tuple(VERDICT_FIELDS)
    assert Ask.PROMPT_SAFETY.known == ("safe", "unsafe", "controversial")
    assert Ask.REFUSAL.known == ("yes", "no")


def test_every_field_that_rewards_need_can_be_asked():
    assert RewardConfig(help=1, intent_gate=True, refusal_label="prompt").needs() <= set(Ask)


def test_json_survives_the_wire_and_has_no_field_that_was_not_asked():
    item = make_item("1", TALK, ask=["refusal"])
    assert JudgeItem.model_validate_json(item.to_json()) == item
    verdict = JudgeVerdict(id="1", refusal=Answer.YES, guard="g@1")
    answer = JudgeAnswer(verdicts=(verdict,)).to_json()
    assert answer == '{"verdicts":[{"id":"1","refusal":"yes","categories":[],"disagreed":[],"guard":"g@1"}]}'
    assert JudgeAnswer.model_validate_json(answer).verdicts[0].to_verdict() == Verdict(
        "1", refusal=Answer.YES, guard="g@1"
    )


def test_equal_content_is_equal_whatever_the_id_and_the_order_of_asking():
    first = make_item("1", TALK, ask=["refusal", "helpful"])
    second = make_item("2", TALK, ask=["helpful", "refusal"])
    assert first.content() == second.content()
    assert first.content() != make_item("1", TALK, ask=["refusal"]).content()


@pytest.mark.parametrize(
    "change",
    [
        {"ask": []},
        {"ask": ["refusal", "refusal"]},
        {"ask": ["honesty"]},
        {"ask": ["intent_preserved"]},
        {"conversation": []},
        {"conversation": [{"role": "assistant", "content": "a"}]},
        {"conversation": [{"role": "user", "content": "q"}]},
        {"conversation": [{"role": "tool", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"id": ""},
        {"id": 1},
        {"mood": "good"},
    ],
)
def test_an_item_that_cannot_be_judged_is_refused(change):
    good = {
        "id": "1",
        "conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "ask": ["refusal"],
    }
    JudgeItem.model_validate_json(json.dumps(good))
    with pytest.raises(ValidationError):
        JudgeItem.model_validate_json(json.dumps(good | change))


def test_a_prompt_can_be_judged_before_anyone_answered():
    item = make_item("1", TALK[:1], ask=["prompt_safety"])
    assert item.response is None


def test_two_items_of_one_id_are_refused():
    item = make_item("1", TALK, ask=["refusal"])
    with pytest.raises(ValidationError, match="same id"):
        JudgeBatch(items=(item, item))


def test_answers_are_matched_by_id_and_not_by_position():
    items = [make_item(id, TALK, ask=["refusal"]) for id in "abc"]
    verdicts = [JudgeVerdict(id=id, refusal=Answer.NO, guard="g") for id in "cab"]
    assert [verdict.id for verdict in match_answers(items, verdicts)] == ["a", "b", "c"]


def test_an_error_beside_a_fully_known_verdict_is_a_contradiction():
    item = make_item("1", TALK, ask=["refusal"])
    with pytest.raises(ProtocolError, match="error"):
        match_answers([item], [JudgeVerdict(id="1", refusal=Answer.NO, guard="g", error="could not read it")])


def test_unknown_answers_exactly_what_was_asked():
    item = make_item("1", TALK, ask=["refusal", "response_safety"])
    verdict = unknown_verdict(item, "g", "why")
    assert (verdict.refusal, verdict.response_safety) == (Answer.UNKNOWN, Safety.UNKNOWN)
    assert verdict.helpful is None
    assert verdict.error == "why"
    assert has_unknown(verdict)
    assert match_answers([item], [verdict]) == [verdict]
