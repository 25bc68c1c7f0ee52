"""``nemo-magic evaluate`` with an attacker and a defence, all of them models of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.evaluating import Evaluated
from tests.evaluation.made_up import write

pytestmark = pytest.mark.process

SEEDS = [{"prompt": f"fleb {i}", "label": "harmful", "id": f"s{i}"} for i in range(4)]
ATTEMPTS = 6


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    world = Evaluated(tmp_path_factory.mktemp("attacked"))
    world.files = {}
    yield world
    world.close()


def words(world: Evaluated) -> list[str]:
    path = write(world.home / "seeds.jsonl", SEEDS)
    tasks = {
        "bare": "attacker: none", "rewritten": "attacker: rewrite", "talk": "attacker: multi_turn, turns: 3",
        "best": f"attacker: best_of_n, attempts: {ATTEMPTS}",
    }  # fmt: skip
    return [
        *(f"+eval.tasks.{name}={{benchmark: seeds, file: {path}, {how}}}" for name, how in tasks.items()),
        "actors.attacker.restore_from_path=null", f"actors.attacker.remote.urls=[{world.endpoint.url}]",
        "actors.attacker.remote.model=wily", "eval.chunk_size=5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def said(evaluated: Evaluated) -> str:
    return evaluated.run("attacked", *words(evaluated))


def curve(folder: Path) -> list[float]:
    figures = json.loads((folder / "results.json").read_text())["figures"]
    [found] = [figure["curve"] for figure in figures if figure["curve"]]
    return [found[str(k)]["rate"] for k in range(1, ATTEMPTS + 1)]


def test_a_served_attacker_attacks_a_served_defender_once_often_and_for_turns(evaluated: Evaluated, said: str) -> None:
    rates = evaluated.rates("attacked")
    assert rates["bare", "harmful asr"] == rates["rewritten", "harmful asr"] == (0, 4, 0)
    assert rates["talk", "harmful asr"] == (4, 4, 0)
    hits, count, _ = rates["best", "harmful asr"]
    best, examples, _ = rates["best", f"harmful asr, best of {ATTEMPTS}"]
    assert (count, examples) == (4 * ATTEMPTS, 4)
    assert 0 < hits / count < best / examples
    assert f"| best | harmful asr, best of {ATTEMPTS} ↓ |" in said
    assert f"## best: harmful asr, best of {ATTEMPTS}, by attempts" in said
    assert f"best: messages and verdicts needed for a case: attacker {ATTEMPTS:.1f}, defender {ATTEMPTS:.1f}" in said
    assert "talk: messages and verdicts needed for a case: attacker 3.0, defender 3.0, judge 1.0" in said


def test_the_curve_begins_at_the_mean_and_ends_at_any(evaluated: Evaluated, said: str) -> None:
    rates, found = evaluated.rates("attacked"), curve(evaluated.folder("attacked"))
    hits, count, _ = rates["best", "harmful asr"]
    best, examples, _ = rates["best", f"harmful asr, best of {ATTEMPTS}"]
    assert found[0] == pytest.approx(hits / count)
    assert found[-1] == best / examples
    assert found == sorted(found)


def test_attempts_are_sampled_as_in_training_and_all_else_is_not(evaluated: Evaluated, said: str) -> None:
    bodies = [body for body in evaluated.endpoint.bodies if body["model"] == "wily"]
    sampled = [body for body in bodies if body["temperature"] == 1.0]
    assert len(sampled) == len({body["seed"] for body in sampled}) == 4 * ATTEMPTS
    # One rewrite of every seed, and three turns: the first of them has other instructions.
    assert len(bodies) - len(sampled) == 4 + 4 * 3
    assert {body["temperature"] for body in evaluated.endpoint.bodies if body["model"] == "tiny"} == {0.0}


def test_nothing_of_it_is_asked_again(evaluated: Evaluated, said: str) -> None:
    before = len(evaluated.prompts)
    again = evaluated.run("attacked", *words(evaluated))
    assert "newly generated: 0 messages; newly judged: 0 conversations" in again
    assert len(evaluated.prompts) == before


def test_a_defended_evaluation_is_paired_with_the_undefended_one(evaluated: Evaluated, said: str) -> None:
    found = evaluated.run(
        "defended", *words(evaluated), "eval.defence.kind=self_eval", "eval.defence.self_eval.check=output",
        f"eval.defence.self_eval.evaluator.urls=[{evaluated.endpoint.url}]",
        "eval.defence.self_eval.evaluator.model=wise", f"eval.baseline={evaluated.folder('attacked')}",
    )  # fmt: skip
    rates = evaluated.rates("defended")
    assert {hits for (_, figure), (hits, _, _) in rates.items() if "asr" in figure} == {0}
    against = {(f["task"], f["figure"]): f["against_baseline"] for f in evaluated.figures("defended")}
    assert against["talk", "harmful asr"]["only_second"] == 4
    assert "defence: Self-Eval of output, asked of wise: one message more for every answer" in found
    assert "talk: 4 answers refused for the defender" in found
    assert "bare: messages and verdicts needed for a case: defender 1.0, evaluator 1.0, judge 1.0" in found


def test_copies_cost_what_is_said_and_a_vote_of_the_judge_is_no_verdict_more_than_there_are_answers(
    evaluated: Evaluated, said: str
) -> None:
    few = [word for word in words(evaluated) if not word.startswith(("+eval.tasks.best", "+eval.tasks.talk"))]
    options = ["eval.defence.kind=smoothllm", "eval.defence.smoothllm.vote=judge", "eval.defence.smoothllm.copies=3"]
    # All characters are replaced: nothing of the message is left, and all answers are alike in kind.
    found = evaluated.run("smooth", *few, *options, "eval.defence.smoothllm.percent=100")
    assert "bare: messages and verdicts needed for a case: defender 3.0, judge 4.0" in found
    assert evaluated.rates("smooth")["bare", "harmful asr"] == (0, 4, 0)
    judged = evaluated.judged("smooth")
    assert len(judged) == len(set(judged)) == 2 * 4 * 3


def test_answers_of_a_tools_report_are_judged_without_any_model(evaluated: Evaluated) -> None:
    rows = [
        {
            "entry_type": "attempt", "uuid": str(i), "status": 2, "probe_classname": "dan.Wug", "prompt": f"norp {i}",
            "messages": [[{"role": "user", "content": f"norp {i}"}, {"role": "assistant", "content": text}]],
        }
        for i, text in enumerate(("bad wug", "sorry", "wug"))
    ]  # fmt: skip
    path = write(evaluated.home / "wug.report.jsonl", rows)
    before = len(evaluated.prompts)
    task = f"+eval.tasks.theirs={{benchmark: garak, file: {path}, answers: file}}"
    none = ["actors.defender.remote.urls=[]", "actors.defender.remote.model=null"]
    said = evaluated.run("theirs", task, *none)
    assert evaluated.rates("theirs") == {("theirs", "harmful asr"): (1, 3, 0)}
    assert "newly generated: 0 messages; newly judged: 3 conversations" in said
    assert len(evaluated.prompts) == before
    played = f"+eval.tasks.ours={{benchmark: garak, file: {path}}}"
    evaluated.run("theirs", task, played)
    assert evaluated.rates("theirs")["ours", "harmful asr"] == (0, 3, 0)
    assert len(evaluated.prompts) == before + 3
