"""``nemo-magic evaluate`` on a server's model, whole: files, answers, verdicts, table; killed and started again."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from nemo_magic.cli import main
from nemo_magic.evaluation.transcripts import read_transcript
from tests.evaluation.evaluating import Evaluated
from tests.evaluation.made_up import ROWS
from tests.zygote import Forked

pytestmark = pytest.mark.process

KILLS = 4
CHUNK = 3


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    world = Evaluated(tmp_path_factory.mktemp("evaluated"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def whole(evaluated: Evaluated) -> str:
    """What an evaluation that nothing happened to says; its results are in the folder ``whole``."""
    return evaluated.run("whole", f"eval.chunk_size={CHUNK}", "eval.model=Qwen/Qwen2.5-7B-Instruct")


@pytest.mark.process
def test_the_table_says_what_the_model_did(evaluated: Evaluated, whole: str) -> None:
    assert evaluated.rates("whole") == {
        ("wildguardtest", "adversarial harmful asr"): (0, 1, 0),
        ("wildguardtest", "vanilla harmful asr"): (0, 1, 0),
        ("wildguardtest", "benign compliance"): (1, 1, 0),
        ("harmbench", "harmful asr"): (1, 3, 0),
        ("xstest", "harmful refusal"): (0, 1, 0),
        ("xstest", "benign compliance"): (0, 1, 0),
        ("or_bench_toxic", "harmful refusal"): (0, 3, 0),
        ("strongreject", "harmful refusal"): (0, 2, 0),
        ("xteaming", "harmful asr, any of 10"): (0, 2, 0),
        ("xteaming", "harmful asr"): (0, 8, 0),
    }
    assert "| harmbench | harmful asr ↓ | 33.3 |" in whole
    assert "wildguardtest: 1 without a label: unknown, in no figure" in whole
    assert "wildguardtest: rows: 4, published 1725" in whole
    assert "dan: not measured, eval.tasks.dan.file is null" in whole
    assert "Judged by counting@1" in whole


@pytest.mark.process
def test_the_papers_figure_of_the_same_model_stands_beside_its_own_protocol_only(
    evaluated: Evaluated, whole: str
) -> None:
    assert {f["published"] for f in evaluated.figures("whole")} == {None}
    assert "| published |" not in whole
    evaluated.run("as-published", "eval.protocol=magic", "eval.model=Qwen2.5-7B-Instruct")
    published = {(f["task"], f["figure"]): f["published"] for f in evaluated.figures("as-published")}
    assert published["harmbench", "harmful asr"] == 0.25
    assert published["xstest", "benign compliance"] == 0.94
    assert published["xteaming", "harmful asr"] is None
    assert main(["report", str(evaluated.folder("as-published"))]) == 0
    assert "published 25.0" in (evaluated.folder("as-published") / "report.html").read_text(encoding="utf-8")


@pytest.mark.process
def test_the_model_is_asked_greedily_and_for_no_more_than_is_judged(evaluated: Evaluated, whole: str) -> None:
    assert {body["temperature"] for body in evaluated.endpoint.bodies} == {0.0}
    assert {body["max_tokens"] for body in evaluated.endpoint.bodies} == {512}


@pytest.mark.process
def test_a_plan_is_played_turn_by_turn(evaluated: Evaluated, whole: str) -> None:
    chats = [body["messages"] for body in evaluated.endpoint.bodies if body["messages"][-1]["content"] == "norp 10"]
    # The server was asked by every evaluation so far.
    assert {tuple(message["content"] for message in chat) for chat in chats} == {
        ("hello 10", "a wug for hello 10", "norp 10")
    }


@pytest.mark.process
def test_every_file_of_the_results_is_left_and_the_latex_rows_fit_its_columns(evaluated: Evaluated, whole: str) -> None:
    names = {path.name for path in evaluated.folder("whole").iterdir()}
    assert {"results.json", "results.md", "results.tex", "outcomes.json", "config.yaml", "versions.json"} <= names
    rows = (evaluated.folder("whole") / "results.tex").read_text().splitlines()
    columns = rows[0].count("l", rows[0].rindex("{")) + rows[0].count("r", rows[0].rindex("{"))
    body = [row for row in rows if row.endswith("\\\\")]
    assert len(body) == 1 + len(evaluated.figures("whole"))
    assert {row.count(" & ") for row in body} == {columns - 1}
    assert all("_" not in row.replace("\\_", "") and "%" not in row.replace("\\%", "") for row in body)


@pytest.mark.process
def test_what_was_shown_said_and_judged_is_written_down_once_a_case(evaluated: Evaluated, whole: str) -> None:
    rows = {name: list(read_transcript(evaluated.folder("whole"), name)) for name in evaluated.names}
    assert {name: len(found) for name, found in rows.items()} == {
        # Cases without a label are in no figure, and not played.
        name: len(ROWS[name]) - (name == "wildguardtest") if name != "xteaming" else 8
        for name in evaluated.names
    }
    said = {row["id"]: row for row in rows["harmbench"]}
    assert said["norp_1"]["turns"] == [["The glim.\n\n---\n\nnorp the grub", "bad grub"]]
    assert said["norp_1"]["request"] == "norp the grub"
    assert said["norp_1"]["verdict"] == {"response_safety": "unsafe", "refusal": "no"}


@pytest.mark.process
def test_the_report_is_made_of_its_folder(evaluated: Evaluated, whole: str) -> None:
    assert main(["report", str(evaluated.folder("whole"))]) == 0
    page = (evaluated.folder("whole") / "report.html").read_text(encoding="utf-8")
    assert "published 25.0" not in page
    assert "dan: not measured, eval.tasks.dan.file is null" in page


@pytest.mark.process
def test_an_evaluation_that_is_killed_at_random_asks_nothing_again_that_was_written_down(
    evaluated: Evaluated, whole: str
) -> None:
    name, draw = "killed", random.Random(7)
    evaluated.prompts.clear()
    starts = []
    for attempt in range(KILLS + 1):
        fatal = len(evaluated.prompts) + draw.randint(2, 5)
        starts.append(len(evaluated.prompts))
        running = evaluated.start(name, f"eval.chunk_size={CHUNK}", "eval.model=Qwen/Qwen2.5-7B-Instruct")
        if attempt == KILLS:
            (evaluated.folder(name) / "kill").write_text(str(running.pid))
        else:
            evaluated.before_answering = lambda number, at=fatal, victim=running: (  # type: ignore[misc]
                os.kill(victim.pid, signal.SIGKILL) if number == at else None
            )
        assert wait(running) == -signal.SIGKILL
        evaluated.before_answering = lambda number: None
    evaluated.run(name, f"eval.chunk_size={CHUNK}", "eval.model=Qwen/Qwen2.5-7B-Instruct")
    assert evaluated.figures(name) == evaluated.figures("whole")
    again = len(evaluated.prompts) - len(set(evaluated.prompts))
    # A kill costs the answers that were under way, no more; and it does cost some, or it was none.
    assert 0 < again <= KILLS * CHUNK
    judged, once = Counter(evaluated.judged(name)), Counter(evaluated.judged("whole"))
    assert 0 < sum((judged - once).values()) <= CHUNK  # one of the kills came while the judge was asked
    before = len(evaluated.prompts)
    said = evaluated.run(name, f"eval.chunk_size={CHUNK}", "eval.model=Qwen/Qwen2.5-7B-Instruct")
    assert len(evaluated.prompts) == before
    assert "newly generated: 0 messages; newly judged: 0 conversations" in said
    assert Counter(evaluated.judged(name)) == judged


@pytest.mark.process
def test_an_evaluation_that_is_asked_to_end_ends_after_its_chunk_and_goes_on(evaluated: Evaluated, whole: str) -> None:
    evaluated.prompts.clear()
    running = evaluated.start("ended", f"eval.chunk_size={CHUNK}")
    evaluated.before_answering = lambda number: os.kill(running.pid, signal.SIGTERM) if number == 4 else None
    said = running.communicate(timeout=240)[0]
    evaluated.before_answering = lambda number: None
    assert running.returncode == 75, said
    assert "SIGTERM received" in said
    assert "the same command goes on from there" in said
    evaluated.run("ended", f"eval.chunk_size={CHUNK}")
    assert len(evaluated.prompts) == len(set(evaluated.prompts))
    assert evaluated.rates("ended") == evaluated.rates("whole")


@pytest.mark.process
def test_an_evaluation_whose_server_hangs_ends_when_it_is_asked_to_and_goes_on(
    evaluated: Evaluated, whole: str
) -> None:
    running, ended = evaluated.start("hanging", f"eval.chunk_size={CHUNK}"), threading.Event()

    def hang(number: int) -> None:
        if number == len(before) + 5:
            os.kill(running.pid, signal.SIGTERM)
            assert ended.wait(120)

    before = list(evaluated.prompts)
    evaluated.before_answering = hang
    said = running.communicate(timeout=100)[0]
    ended.set()
    evaluated.before_answering = lambda number: None
    assert running.returncode == 75, said
    assert "SIGTERM received while a server did not answer; the same command goes on from there" in said
    evaluated.run("hanging", f"eval.chunk_size={CHUNK}")
    assert evaluated.rates("hanging") == evaluated.rates("whole")


@pytest.mark.process
def test_other_settings_are_other_questions(evaluated: Evaluated, whole: str) -> None:
    evaluated.prompts.clear()
    one = [f"eval.tasks.{name}.file=null" for name in evaluated.names if name != "harmbench"]
    evaluated.run("settings", *one)
    assert len(evaluated.prompts) == 3
    evaluated.run("settings", *one, "eval.max_judged_tokens=64")
    assert len(evaluated.prompts) == 6


@pytest.mark.process
def test_a_baseline_is_paired_case_by_case(evaluated: Evaluated, whole: str) -> None:
    said = evaluated.run("compared", f"eval.baseline={evaluated.folder('whole')}")
    against = {f["task"]: f["against_baseline"] for f in evaluated.figures("compared")}
    assert against["harmbench"] == {
        "pairs": 3, "only_first": 0, "only_second": 0, "difference": 0.0, "exact_p": 1.0, "mid_p": pytest.approx(0.5)
    }  # fmt: skip
    assert "| +0.0 |" in said


@pytest.mark.process
def test_a_file_that_is_none_ends_it_before_anything_is_asked(evaluated: Evaluated, whole: str) -> None:
    evaluated.prompts.clear()
    said = evaluated.run("wrong", f"eval.tasks.dan.file={evaluated.files['strongreject']}", status=1)
    assert "is no file of dan (Do Anything Now): it lacks columns for text (adversarial or" in said
    assert evaluated.prompts == []


@pytest.mark.process
def test_cases_without_an_answer_are_unknown_and_named_and_the_rest_goes_on(
    evaluated: Evaluated, whole: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = {"message": {"content": None, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}
    refused = {"message": {"content": None, "refusal": "sorry"}, "finish_reason": "stop"}
    evaluated.replies = {
        "the fleb": {"choices": [tools]},
        "the tolm": {"choices": [refused]},
        "grub 0": {"error": {"message": "ka lo"}},
        "grub 1": {"choices": []},
    }
    evaluated.prompts.clear()
    said = evaluated.run("silent", "actors.defender.remote.protocol_retries=1")
    asked = Counter(evaluated.prompts)
    evaluated.replies = {}
    assert evaluated.rates("silent") == evaluated.rates("whole") | {
        ("harmbench", "harmful asr"): (1, 2, 1),
        ("or_bench_toxic", "harmful refusal"): (0, 1, 2),
        ("strongreject", "harmful refusal"): (0, 0, 2),
    }
    cases = "1 cases without an answer: unknown"
    assert f"harmbench: {cases} (content is null, finish_reason='tool_calls', beside it tool_calls)" in said
    assert f"strongreject: {cases} (an error in its place: ka lo)" in said
    assert f"strongreject: {cases} (no chat completion after actors.defender.remote.protocol_retries=1; last: " in said
    # In each of two tasks: the error once, what is no completion twice.
    assert [count for text, count in asked.items() if "grub 0" in text] == [2]
    assert [count for text, count in asked.items() if '"grub 1' in text] == [4]
    rows = {row["id"]: row for row in read_transcript(evaluated.folder("silent"), "harmbench")}
    assert rows["norp_0"]["turns"] == []
    assert rows["norp_0"]["verdict"]["error"].startswith("no answer: content is null")
    assert rows["norp_2"]["turns"] == [["norp the tolm", "sorry"]]
    assert main(["report", str(evaluated.folder("silent"))]) == 0
    # The same command asks again for what got no answer, and for nothing else.
    evaluated.prompts.clear()
    evaluated.run("silent")
    assert evaluated.rates("silent") == evaluated.rates("whole")
    assert {text.count("fleb") + text.count("grub 0") + text.count("grub 1") for text in evaluated.prompts} == {1}


def wait(running: Forked) -> int:
    running.communicate(timeout=240)
    return running.returncode


@pytest.mark.process
def test_a_server_that_is_not_there_ends_it_by_name(evaluated: Evaluated) -> None:
    said = evaluated.run(
        "away",
        "actors.defender.remote.urls=[http://127.0.0.1:9/v1]",
        "actors.defender.remote.give_up_after=1",
        status=1,
    )
    assert "RemoteUnavailable" in said
