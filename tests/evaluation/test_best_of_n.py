"""ASR of k attempts: the estimate against all subsets of them, and what becomes of what is unknown."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from nemo_magic.config import ConfigError, compose
from nemo_magic.data.catalogue import BENCHMARKS, Metric
from nemo_magic.evaluation.example import Example, expand_attempts
from nemo_magic.evaluation.metrics import JudgedExample, measure, success_at
from nemo_magic.evaluation.results import Results
from nemo_magic.game.episode import Label, Safety, Verdict

BASE = ["judge.urls=[http://judge:1]", "actors.defender.restore_from_path=/w", "actors.attacker.restore_from_path=/w"]


@pytest.mark.parametrize("seed", range(20))
def test_the_estimate_is_the_share_of_all_subsets_in_which_any_attempt_succeeds(seed: int) -> None:
    draw = random.Random(seed)
    came = [draw.random() < 0.3 for _ in range(7)]
    for k in range(1, 8):
        subsets = list(combinations(came, k))
        assert success_at(k, came) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_unknown_attempts_are_left_out_and_too_few_known_ones_tell_nothing() -> None:
    assert success_at(1, [True, False, None, None]) == 0.5
    assert success_at(2, [True, False, None, None]) == 1.0
    assert success_at(3, [False, False, None, None]) is None
    assert success_at(3, [True, False, None, None]) is None
    assert success_at(4, [True, False, None, None]) == 1.0
    assert success_at(4, [False, False, None, None]) is None
    assert success_at(1, [None]) is None


def judged(outcomes: dict[str, list[Safety]]) -> list[JudgedExample]:
    """Two examples a behaviour, attacked as often as ``outcomes`` says."""
    examples = [Example(id, (id,), Label.HARMFUL, behaviour=id[0]) for id in outcomes]
    return [
        JudgedExample(attempt, Verdict(attempt.id, response_safety=outcomes[example.id][i]))
        for example in examples
        for i, attempt in enumerate(expand_attempts([example], len(outcomes[example.id])))
    ]


def test_a_case_counts_once_whatever_its_behaviour_and_the_curve_ends_at_any() -> None:
    safe, unsafe, unknown = Safety.SAFE, Safety.UNSAFE, Safety.UNKNOWN
    rows = judged(
        {
            "a1": [unsafe, safe, safe, safe], "a2": [safe] * 4, "b1": [unsafe, unsafe, unknown, unknown],
            "b2": [safe, safe, safe, unknown],
        }
    )  # fmt: skip
    task = "+eval.tasks.x={benchmark: advbench, file: /f, attacker: best_of_n, attempts: 4}"
    cfg = compose("eval_paper", [*BASE, task], command="evaluate")
    mean, best = (measure("x", figure, rows) for figure in cfg.eval.figures("x"))
    assert (mean.figure.name, mean.rate.hits, mean.rate.count, mean.rate.unknown) == ("harmful asr", 3, 13, 3)
    assert mean.curve == mean.outcomes == {}
    assert (best.figure.name, best.rate.hits, best.rate.count, best.rate.unknown) == ("harmful asr, best of 4", 2, 3, 1)
    assert best.outcomes == {"a1": True, "a2": False, "b1": True, "b2": None}
    assert [best.curve[k].value for k in (1, 2, 4)] == [pytest.approx((0.25 + 0 + 1 + 0) / 4), 1.5 / 4, 2 / 3]
    assert (best.curve[3].count, best.curve[4].unknown) == (3, 1)
    low, high = best.curve[1].interval or (0, 0)
    assert low < 0.3125 < high
    text = Results("t", None, "g@1", [mean, best]).to_markdown()
    assert "| attempts | % | interval | cases | unknown |" in text
    assert "| 2 | 37.5 |" in text


def test_figures_of_what_is_not_as_published_have_no_published_figure_beside() -> None:
    def published(task: str, *words: str) -> set[str | None]:
        cfg = compose("eval_paper", [*BASE, f"eval.tasks.harmbench={{{task}}}", *words], command="evaluate")
        return {figure.published for figure in cfg.eval.figures("harmbench")}

    assert published("file: /f") == {None}
    assert published("file: /f", "eval.protocol=magic") == {BENCHMARKS["harmbench"].figures[0].published} != {None}
    assert published("file: /f, attacker: rewrite") == {None}
    assert published("file: /f", "eval.defence.kind=smoothllm") == {None}


def test_the_judge_is_asked_what_the_vote_needs() -> None:
    words = [*BASE, "eval.tasks.xstest.file=/f", "eval.defence.kind=smoothllm"]
    assert compose("eval_paper", words, command="evaluate").eval.fields() == {Metric.REFUSAL.field}
    by_judge = compose("eval_paper", [*words, "eval.defence.smoothllm.vote=judge"], command="evaluate")
    assert by_judge.eval.fields() == {Metric.REFUSAL.field, Metric.ASR.field}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("attempts: 4", "attempts=4: attacker=none makes one, several need attacker=best_of_n or attacker=multi_turn"),
        ("attacker: best_of_n, attempts: 1", "attempts=1 must be at least 2, or null"),
        ("attacker: rewrite, turns: 3", "turns=3: attacker=rewrite has one turn, more need attacker=multi_turn"),
        ("attacker: multi_turn, turns: 1", "turns=1 must be at least 2, or null"),
        (
            "attacker: multi_turn",
            "eval.tasks.dan.attacker=multi_turn: game.max_turns=1 is one turn, set eval.tasks.dan.tu",
        ),
        ("answers: mine", "answers='mine' must be one of: defender, file"),
        ("answers: file, attacker: rewrite", "attacker=rewrite: answers=file only judges what was said already"),
        (
            "answers: file",
            "eval.tasks.dan.answers=file: files of Do Anything Now hold no answers, those of garak, "
            "jailbreakbench_artifacts, openrt, pyrit do",
        ),
    ],
)
def test_an_attack_that_cannot_be_is_refused_by_name(task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("eval_paper", [*BASE, f"eval.tasks.dan={{file: /f, {task}}}"], command="evaluate")


def test_a_multi_turn_attack_has_the_games_turns_where_it_names_none() -> None:
    words = [*BASE, "game.max_turns=4", "eval.tasks.dan={file: /f, attacker: multi_turn, attempts: 2}"]
    task = compose("eval_paper", words, command="evaluate").eval.tasks["dan"]
    assert (task.turn_count(4), task.attack_count) == (4, 2)
