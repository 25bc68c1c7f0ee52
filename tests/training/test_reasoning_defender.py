"""A defender that reasons first is quoted by its answers only, and trained on what it sampled."""

from __future__ import annotations

from nemo_magic.game.episode import Message, Role
from nemo_magic.game.prompts import Chat
from nemo_magic.rollout.engine import RolloutEngine
from nemo_magic.runtime.timers import Timers
from tests.training.test_rollout_engine import PROMPTS, SEEDS, Scripted, asked, attack


def reason(chat: Chat) -> str:
    return f"<think> secret {asked(chat)} </think> <answer> no {asked(chat)} </answer>"


def forget_a_tag(chat: Chat) -> str:
    return reason(chat).replace("</answer>", "") if asked(chat) == 2 else reason(chat)


def stage(script: object, *, cot: bool = True) -> tuple[Scripted, Scripted, RolloutEngine]:
    log: list[Role] = []
    attacker, defender = Scripted(Role.ATTACKER, attack, log), Scripted(Role.DEFENDER, script, log)  # type: ignore[arg-type]
    pair = {Role.ATTACKER: attacker, Role.DEFENDER: defender}
    rollouts = RolloutEngine(pair, PROMPTS, Timers(), seed=7, group_size=2, max_turns=3, defender_cot=cot)
    return attacker, defender, rollouts


def test_neither_role_nor_judge_ever_reads_the_reasoning() -> None:
    attacker, defender, rollouts = stage(reason)
    episodes = rollouts.attacker_rollout(SEEDS, 0)
    read = [message for chat in (*attacker.heard, *defender.heard) for message in chat]
    read += [message for episode in episodes for message in episode.conversation]
    assert not [message for message in read if "secret" in message.content]
    assert Message("user", "It said: no 1") in read
    assert Message("assistant", "no 2") in read


def test_what_was_sampled_is_trained_on_whole() -> None:
    _, _, rollouts = stage(reason)
    (episode, *_) = rollouts.attacker_rollout(SEEDS, 0)
    assert [c.text for c in episode.messages_of(Role.DEFENDER)] == [
        f"<think> secret {turn} </think> <answer> no {turn} </answer>" for turn in (1, 2, 3)
    ]
    assert episode.answer_format_ok is True


def test_a_reply_with_broken_tags_is_played_without_them_and_breaks_the_format() -> None:
    _, _, rollouts = stage(forget_a_tag)
    (episode, *_) = rollouts.attacker_rollout(SEEDS, 0)
    assert [turn.reply for turn in episode.turns] == ["no 1", "no 2", "no 3"]
    assert [turn.answer_format_ok for turn in episode.turns] == [True, False, True]
    assert episode.answer_format_ok is False


def test_a_defender_that_is_not_asked_to_reason_is_quoted_whole() -> None:
    _, _, rollouts = stage(reason, cot=False)
    (episode, *_) = rollouts.attacker_rollout(SEEDS, 0)
    assert episode.turns[0].reply == "<think> secret 1 </think> <answer> no 1 </answer>"
    assert episode.answer_format_ok is None
