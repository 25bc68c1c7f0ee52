"""A task played by roles that answer by a rule: rewriting, sampled attempts, conversations, answers that are judged
only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from nemo_magic.evaluation.errors import EvaluationError
from nemo_magic.evaluation.example import Example, expand_attempts
from nemo_magic.evaluation.task_runner import TaskRunner
from nemo_magic.game.episode import Label, Safety, Verdict
from nemo_magic.game.prompts import Chat
from nemo_magic.judge.protocol import JudgeItem
from tests.evaluation.staging import FIELDS, PROMPTS, Judge, Rule, Staged, echo


def harmful(id: str, *turns: str) -> Example:
    return Example(id, turns, Label.HARMFUL)


def test_a_rewrite_is_what_the_defender_sees_and_the_seed_is_what_the_judge_is_told(tmp_path: Path) -> None:
    attacker, defender, judge = echo(tagged=True), echo(), Judge()
    staged = Staged(tmp_path, defender, attacker, judge)
    assert set(staged.stage().play([harmful("a", "norp it"), harmful("b", "norp " * 12)])) == {"a"}
    assert attacker.chats[0][-1].content == "harmful: norp it"
    assert [chat[-1].content for chat in defender.chats] == ["HARMFUL: NORP IT"]
    assert judge.items[0].seed is not None
    assert judge.items[0].seed.text == "norp it"
    assert (staged.stats.unplayed, staged.stats.broken_format) == (1, 0)


def test_what_the_model_cannot_read_is_cut_and_counted(tmp_path: Path) -> None:
    staged = Staged(tmp_path, defender := echo())
    staged.stage().play([harmful("a", "one two three four five six seven")])
    assert defender.chats[0][-1].content == "one two three four five six"
    assert staged.stats.cut == 1


def test_equal_cases_are_asked_once_and_a_lost_verdict_is_asked_for_again(tmp_path: Path) -> None:
    defender, judge = echo(), Judge()
    examples = [harmful("a", "bad"), harmful("b", "bad"), harmful("c", "LOST")]
    for _ in range(2):
        found = Staged(tmp_path, defender, judge=judge).stage().play(examples)
        assert found["a"] == Verdict("0", response_safety=Safety.UNSAFE)
        assert found["c"].error == "lost"
    assert len(defender.chats) == 2
    assert [item.prompt for item in judge.items] == ["bad", "LOST", "LOST"]


def test_a_judge_that_fails_ends_it_by_name(tmp_path: Path) -> None:
    class Broken:
        def score(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
            raise ConnectionError("gone")

    with pytest.raises(EvaluationError, match="ConnectionError: gone"):
        Staged(tmp_path, echo(), judge=Broken()).stage().play([harmful("a", "wug")])


def dice(chat: Chat, seed: int | None) -> str:
    """An attacker whose words are its seed's."""
    return f"<think>hm</think><answer>wug {seed}</answer>"


def test_attempts_are_sampled_each_with_a_seed_of_its_own_and_none_is_written_twice(tmp_path: Path) -> None:
    examples = expand_attempts([harmful("a", "norp"), harmful("b", "norp")], 3)
    assert [example.id for example in examples] == ["a#0", "a#1", "a#2", "b#0", "b#1", "b#2"]
    attacker, defender = Rule(dice), echo()
    first = Staged(tmp_path, defender, attacker).stage(seed=7).play(examples)
    shown = [chat[-1].content for chat in defender.chats]
    assert len(set(shown)) == 6
    assert "wug None" not in shown
    again = Staged(tmp_path, defender, attacker).stage(seed=7).play(examples[1:])
    assert again == {id: Verdict(str(int(first[id].id) - 1), response_safety=Safety.SAFE) for id in list(first)[1:]}
    assert len(attacker.chats) == len(defender.chats) == 6
    Staged(tmp_path, defender, attacker).stage(seed=8).play(examples)
    assert len({chat[-1].content for chat in defender.chats}) == 12


def test_one_attempt_is_the_rewrite_of_temperature_0(tmp_path: Path) -> None:
    Staged(tmp_path, defender := echo(), Rule(dice)).stage().play(expand_attempts([harmful("a", "norp")], 1))
    assert [chat[-1].content for chat in defender.chats] == ["wug None"]


def persists(chat: Chat, seed: int | None) -> str:
    """An attacker that says which turn it is, and thinks aloud."""
    return f"<think>{len(chat)}</think><answer>turn {sum(m.role == 'assistant' for m in chat)}</answer>"


def test_an_attacker_of_several_turns_sees_its_own_words_whole_and_the_replies_to_them(tmp_path: Path) -> None:
    attacker, judge = Rule(persists), Judge()
    Staged(tmp_path, echo(), attacker, judge).stage(turns=3).play([harmful("a", "norp")])
    assert [(m.role, m.content) for m in attacker.chats[-1]] == [
        ("user", "harmful: norp"),
        ("assistant", "<think>1</think><answer>turn 0</answer>"),
        ("user", "it said: TURN 0"),
        ("assistant", "<think>3</think><answer>turn 1</answer>"),
        ("user", "it said: TURN 1"),
    ]
    assert [m.content for m in judge.items[0].conversation] == [
        "turn 0", "TURN 0", "turn 1", "TURN 1", "turn 2", "TURN 2"
    ]  # fmt: skip


def test_an_attack_that_cannot_go_on_is_judged_as_it_stands_and_a_plan_is_unknown(tmp_path: Path) -> None:
    # The reply is longer than the attacker can read, and so is the plan's second message for the defender.
    def talks(chat: Chat, seed: int | None) -> str:
        return "la " * 12

    judge = Judge()
    staged = Staged(tmp_path, Rule(talks), Rule(persists), judge)
    assert set(staged.stage(turns=3).play([harmful("a", "norp")])) == {"a"}
    assert (len(judge.items[0].conversation), staged.stats.ended, staged.stats.unplayed) == (2, 1, 0)

    class Deaf(Rule):
        def truncate_to_context(self, text: str, chat_of: object) -> str:
            return text

    staged = Staged(tmp_path, Deaf(talks))
    assert staged.stage().play([harmful("p", "norp", "la " * 12)]) == {}
    assert (staged.stats.ended, staged.stats.unplayed) == (0, 1)


def test_answers_of_a_file_are_judged_and_nobody_is_asked(tmp_path: Path) -> None:
    staged = Staged(tmp_path, defender := echo(), judge=(judge := Judge()))
    stage = TaskRunner(staged.ranks, None, None, staged.judge, PROMPTS, FIELDS, staged.stats)
    examples = [
        Example("a", ("norp", "and then"), Label.HARMFUL, replies=("no", "bad")),
        Example("b", ("norp",), Label.HARMFUL, replies=("no",)),
    ]
    found = stage.play(examples)
    assert {id: verdict.response_safety for id, verdict in found.items()} == {"a": Safety.UNSAFE, "b": Safety.SAFE}
    assert [m.content for m in judge.items[0].conversation] == ["norp", "no", "and then", "bad"]
    assert defender.chats == []
