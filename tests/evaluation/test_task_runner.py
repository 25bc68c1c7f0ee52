"""A task played by roles that answer by a rule: rewriting, sampled attempts, conversations, answers that are judged
only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.data.catalogue import Figure, Metric
from nemo_magic.evaluation.errors import EvaluationError
from nemo_magic.evaluation.example import Example, expand_attempts
from nemo_magic.evaluation.metrics import JudgedExample, measure
from nemo_magic.evaluation.task_runner import TaskRunner
from nemo_magic.game.episode import Label, NoAnswer, Safety, Verdict
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


SILENT = [NoAnswer("content is null, finish_reason='tool_calls'"), "", "  "]
"""What is no answer: what a server did not say, and what is empty, whoever said it."""


def played_with(tmp_path: Path, silent: NoAnswer | str, who: str, turn: int = 0, **options: Any) -> tuple[Staged, Any]:
    """Three examples; of the one with ``norp``, ``who`` gives no answer in that turn."""

    def speaks(text: Callable[[Chat], str]) -> Callable[[Chat, int | None], str | NoAnswer]:
        return lambda chat, _: text(chat)

    def is_silent(text: Callable[[Chat], str]) -> Callable[[Chat, int | None], str | NoAnswer]:
        def rule(chat: Chat, _: int | None) -> str | NoAnswer:
            turns = sum(message.role == "assistant" for message in chat)
            return silent if "norp" in str(chat).lower() and turns == turn else text(chat)

        return rule

    says = {
        "attacker": lambda chat: f"<think>x</think><answer>{chat[0].content.split()[-1]}</answer>",
        "defender": lambda chat: chat[-1].content.upper(),
    }
    roles = {name: Rule((is_silent if name == who else speaks)(text)) for name, text in says.items()}
    attacked = options.pop("attacked", False)
    staged = Staged(tmp_path, roles["defender"], roles["attacker"] if attacked else None)
    more = () if attacked else ("dax",)
    examples = [harmful("a", "wug", *more), harmful("b", "norp", *more), harmful("c", "wug bad", *more)]
    return staged, staged.stage(**options).play(examples)


@pytest.mark.parametrize("silent", SILENT)
@pytest.mark.parametrize("turn", [0, 1])
def test_a_case_without_an_answer_is_unknown_counted_and_named_and_the_rest_goes_on(
    tmp_path: Path, silent: NoAnswer | str, turn: int
) -> None:
    staged, verdicts = played_with(tmp_path, silent, "defender", turn)
    assert {id: verdict.error for id, verdict in verdicts.items() if verdict.error is None} == {"a": None, "c": None}
    reason = silent.reason if isinstance(silent, NoAnswer) else "the text is empty"
    assert verdicts["b"].error == f"no answer: {reason}"
    assert (staged.stats.unanswered, staged.stats.unplayed) == ({reason: 1}, 0)
    figure = Figure(Metric.ASR)
    judged = [JudgedExample(harmful(id, "x"), verdicts.get(id)) for id in "abc"]
    rate = measure("task", figure, judged).rate
    assert (rate.count, rate.unknown) == (2, 1)
    if isinstance(silent, NoAnswer):  # what its server did not say it may say the next time
        asked = len(staged.defender._policy.chats)  # type: ignore[attr-defined]
        staged.stage().play([harmful("a", "wug", "dax"), harmful("b", "norp", "dax")])
        assert len(staged.defender._policy.chats) == asked + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("turn", [0, 1])
def test_a_case_without_an_attack_is_unknown_too(tmp_path: Path, turn: int) -> None:
    staged, verdicts = played_with(tmp_path, NoAnswer("cut off"), "attacker", turn, turns=2, attacked=True)
    assert [verdicts[id].error for id in "abc"] == [None, "no answer: cut off", None]
    assert (staged.stats.unanswered, staged.stats.ended) == ({"cut off": 1}, 0)


@pytest.mark.parametrize("check", ["input", "output", "both"])
def test_what_an_evaluator_gave_no_answer_about_is_unknown_and_not_refused(tmp_path: Path, check: str) -> None:
    def rule(chat: Chat, _: int | None) -> str | NoAnswer:
        return NoAnswer("cut off") if "norp" in chat[-1].content.lower() else "safe"

    staged = Staged(tmp_path, echo())
    defence = staged.self_eval(Rule(rule), check=check, unreadable="refuse")
    verdicts = staged.stage(defence).play([harmful("a", "norp"), harmful("b", "wug")])
    assert verdicts["a"].error == "no answer: the evaluator: cut off"
    assert verdicts["b"].error is None
    assert staged.stats.refused == 0


def test_a_copy_without_an_answer_has_no_vote(tmp_path: Path) -> None:
    def rule(chat: Chat, _: int | None) -> str | NoAnswer:
        return NoAnswer("cut off") if "norp" in chat[-1].content or len(chat[-1].content) % 2 else "sure"

    staged = Staged(tmp_path, Rule(rule))
    defence = staged.smoothllm(copies=3, percent=0)
    verdicts = staged.stage(defence).play([harmful("a", "norp"), harmful("b", "wugs")])
    assert verdicts["a"].error == "no answer: cut off"
    assert verdicts["b"].error is None
    assert staged.stats.undecided == 3


def test_reasoning_alone_is_no_answer(tmp_path: Path) -> None:
    staged = Staged(tmp_path, Rule(lambda chat, _: "<think> wug wug"), cot=True)
    assert staged.stage().play([harmful("a", "norp")])["a"].error == "no answer: reasoning and no answer"


def test_an_attack_that_is_cut_off_before_its_text_is_not_played_and_its_case_is_unknown(tmp_path: Path) -> None:
    staged = Staged(tmp_path, defender := echo(), Rule(lambda chat, seed: "<think> on and on", finished=False))
    verdicts = staged.stage().play([harmful("a", "norp")])
    assert not defender.chats
    assert "cut off before it had any text" in (verdicts["a"].error or "")
    assert (sum(staged.stats.unanswered.values()), staged.stats.unplayed, staged.stats.broken_format) == (1, 0, 1)
