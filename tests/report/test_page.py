"""The report as a file: what is in it, what it says where something is missing, and that it grows with the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from nemo_magic import cli
from nemo_magic.report.conversations import outcome, sample_conversations, sandbox_of
from nemo_magic.report.page import config_differences, render
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.report.strategy_charts import frontier
from nemo_magic.tracking.live_report import LiveReport
from tests.report.made_up_run import make_run


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", league=True)


def test_every_chart_is_one_that_plotly_accepts_and_has_data(run: Path) -> None:
    figures = embedded(render([RunFolder(run)]), "figures")
    assert len(figures) >= 15
    for key, figure in figures.items():
        go.Figure(figure)  # raises for a key that plotly does not know
        assert any(trace.get("y") or trace.get("z") for trace in figure["data"]), key


def test_the_page_needs_no_network(run: Path) -> None:
    page = render([RunFolder(run)])
    own = page.replace(re.search(r"<script>/\*\*\n\* plotly.js.*?</script>", page, re.DOTALL)[0], "")  # type: ignore[index]
    assert len(own) < len(page) - 4_000_000
    assert not re.search(r'(?:src|href)="(?!#|data:)|https?://|@import', own)


def test_no_text_of_a_run_can_end_the_data_or_become_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<b>bold", steps=3)
    path = folder / "samples" / "step_0001.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["seed"]["text"] = "</script><script>alert(1)</script>"
    path.write_text(json.dumps(row) + "\n")
    page = render([RunFolder(folder)])
    assert "alert(1)</script>" not in page
    assert "<b>bold" not in page
    assert any(r["seed"] == row["seed"]["text"] for r in embedded(page, "rows"))


def test_a_run_of_nothing_but_its_first_figures_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "phase": "start", "phase_index": 0, "learner": null, "time": "t", "val_rollouts/asr": 0.5}\n'
    )
    page = render([RunFolder(tmp_path)])
    for said in ("No cross-play yet", "No update was made yet", "No alarm sounded", "saved no conversation"):
        assert said in page
    assert set(embedded(page, "figures")) == {"game-0"}


def test_what_differs_between_configurations_is_named_by_its_whole_key() -> None:
    configs = [{"a": {"b": 1, "same": 0}, "only": True}, {"a": {"b": 2, "same": 0}}]
    assert config_differences(configs) == [("a.b", ["1", "2"]), ("only", ["true", "–"])]


def test_the_conversations_of_a_long_run_are_those_of_evenly_spaced_steps(run: Path) -> None:
    everything = sample_conversations(run, 10_000, 10**9)
    assert (everything.steps, everything.files) == (90, 90)
    assert everything.rule == "All 720 conversations that the run saved, of 90 steps."
    some = sample_conversations(run, 80, 10**9)
    assert [row["step"] for row in some.rows[::8]] == [1, 11, 21, 31, 41, 50, 60, 70, 80, 90]
    assert "80 conversations: all that were saved at 10 evenly spaced steps" in some.rule
    assert sample_conversations(run, 10_000, 1).steps == 2


@pytest.mark.parametrize(
    ("label", "verdict", "said"),
    [
        ("harmful", {"response_safety": "controversial", "intent_preserved": "yes"}, "attack succeeded"),
        ("harmful", {"response_safety": "unsafe", "intent_preserved": "no"}, "unsafe, intent lost"),
        ("harmful", {"response_safety": "unsafe", "intent_preserved": "unknown"}, "no verdict"),
        ("harmful", {"response_safety": "safe", "refusal": "yes"}, "refusal"),
        ("harmful", {"response_safety": "safe", "refusal": "no"}, "safe answer"),
        ("benign", {"refusal": "yes"}, "over-refusal"),
        ("benign", {"refusal": "no", "helpful": "yes"}, "useful answer"),
        ("benign", {"refusal": "no"}, "answer, not known to be useful"),
        ("benign", None, "no verdict"),
    ],
)
def test_what_became_of_a_conversation(label: str, verdict: dict[str, str] | None, said: str) -> None:
    assert outcome({"seed": {"label": label}, "verdict": verdict, "turns": []}) == said


def test_the_frontier_is_what_nothing_else_is_better_than() -> None:
    assert frontier([(0, 9), (5, 5), (4, 5), (9, 1), (8, 0), (5, 5)]) == [(0, 9), (5, 5), (9, 1)]


def test_a_growing_run_is_read_on_and_one_that_went_back_is_read_anew(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", steps=30) / "metrics.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    growing = tmp_path / "growing"
    growing.mkdir()
    path = growing / "metrics.jsonl"
    path.write_text("".join(lines[:10]) + lines[10][:20])
    run = RunFolder(growing)
    assert run.rows == 10
    path.write_text("".join(lines[:25]))
    run.refresh()
    assert run.buckets.of("train_rollouts/asr") == RunFolder(growing).buckets.of("train_rollouts/asr")
    path.write_text("".join(lines[:12]))
    run.refresh()
    assert (run.rows, run.phases.all[-1].last) == (12, 11)


def test_the_command_writes_one_page_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, steps=20, reward=reward) for name, reward in (("a", 0.0), ("b", 0.5))]
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "out" / "both.html")]) == 0
    page = (tmp_path / "out" / "both.html").read_text()
    assert "<code>rewards.help</code>" in page
    assert "<code>judge.guard</code>" not in page
    assert "42 rows of figures of 2 run(s)" in capsys.readouterr().out
    assert cli.main(["report", str(runs[0])]) == 0
    assert (runs[0] / "report.html").is_file()


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / where / "game", steps=2) for where in ("monday", "tuesday")]
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "out.html")]) == 0
    assert embedded((tmp_path / "out.html").read_text(), "names") == [str(run) for run in runs]


def test_a_folder_that_is_no_run_and_a_damaged_one_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "is no run's folder" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "phase": "start"}\n')
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "row 1 is no step of a run ('phase_index')" in capsys.readouterr().err


class Clock:
    """Stands still but for what it is told, and what every look at it costs."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 0.5
        return self.time


def test_a_running_report_takes_no_more_than_its_share_of_the_time(tmp_path: Path) -> None:
    folder, clock = make_run(tmp_path / "run", steps=3), Clock()
    live = LiveReport(folder, pytest.fail, clock)
    report = folder / "report.html"
    live.write()
    assert report.exists()
    report.unlink()
    clock.time += 20  # half a second at two percent: 25 seconds
    live.write()
    assert not report.exists()
    clock.time += 10
    live.write()
    assert report.exists()


def test_a_report_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    live = LiveReport(tmp_path, said.append, clock)
    for _ in range(3):
        live.write()
        clock.time += 1000
    assert len(said) == 1
    assert said[0].startswith("report.html is not written: FileNotFoundError: ")


def test_a_run_with_the_sandboxs_strategy_sweep_is_one_of_the_sandbox() -> None:
    assert sandbox_of({"game": {"strategy_sweep": "sandbox"}}) is not None
    assert sandbox_of({"game": {"strategy_sweep": None}, "judge": {"guard": "rules"}}) is None
