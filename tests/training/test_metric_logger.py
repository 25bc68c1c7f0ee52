"""What a person sees of a run: JSONL, samples, TensorBoard, wandb, the table, the picture and the summary."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from nemo_magic.config.experiment import ExpManagerConfig, WandbConfig
from nemo_magic.game.alarms import AlarmEvent
from nemo_magic.game.episode import Answer, Completion, Episode, Label, Role, Safety, Seed, Turn, Verdict
from nemo_magic.game.metrics import Scored
from nemo_magic.game.payoff import CrossPlay
from nemo_magic.report.game_picture import draw_game, phase_spans
from nemo_magic.report.records import StepRecord, read_records
from nemo_magic.runtime.timers import Timers
from nemo_magic.tracking.console_table import ConsoleTable
from nemo_magic.tracking.metric_logger import MetricLogger
from nemo_magic.tracking.run_summary import print_summary
from nemo_magic.tracking.sinks import AlarmWriter, JsonlSink


def config(folder: Path, **options: object) -> ExpManagerConfig:
    return ExpManagerConfig(explicit_log_dir=str(folder), **{"create_tensorboard_logger": False} | options)  # type: ignore[arg-type]


def record(step: int, learner: str | None = "defender", **metrics: float) -> StepRecord:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepRecord(step, learner or "start", (step - 1) // 2, learner, named)


def game(i: int) -> Scored:
    said = Completion((1,), (2,), (-0.5,), f"<think> why {i} </think> <answer> r </answer>", True)
    episode = Episode(Seed(f"s{i}", "q", Label.HARMFUL), i, 0, (Turn("r", True, said, said),))
    return Scored(episode, Verdict("v", None, Safety.SAFE, Answer.YES), {Role.DEFENDER: {"harm": 1.0}})


def test_every_step_is_a_line_and_not_a_number_is_null(tmp_path: Path) -> None:
    with MetricLogger(config(tmp_path), is_main=True) as logger:
        logger.record(record(1, train_rollouts__asr=0.5, train_optim__loss=math.nan))
        logger.record(record(2, train_rollouts__asr=0.25))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["train_rollouts/asr"] for row in rows] == [0.5, 0.25]
    assert rows[0]["train_optim/loss"] is None
    assert [r.step for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2]


def test_only_the_main_rank_writes(tmp_path: Path) -> None:
    with MetricLogger(config(tmp_path / "run"), is_main=False) as logger:
        logger.record(record(1), [game(0)])
        logger.note("hello")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_replaces_the_steps_it_does_again(tmp_path: Path) -> None:
    with MetricLogger(config(tmp_path), is_main=True) as logger:
        for step in (1, 2, 3):
            logger.record(record(step), [game(step)])
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "cut sh')
    with MetricLogger(config(tmp_path), is_main=True, resume_step=1) as logger:
        logger.record(record(2))
    assert [r.step for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step_0001.jsonl"]


DAMAGE = st.one_of(
    st.binary(max_size=40).filter(lambda b: b"\n" not in b),
    st.sampled_from(
        [b"\0" * 64, b'{"step": 1, "tra', b'{"step": null}', b'{"step": "2"}', b"[]", b"7", b"null", b"{}", b"\xff\xfe",
         b'{"step": true}', b'{"step": 1}{"step": 2}']
    ),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(DAMAGE, min_size=1, max_size=3), at=st.integers(0, 2), cut=st.booleans())
def test_a_run_is_resumed_whatever_became_of_lines_of_its_figures(
    tmp_path: Path, damage: list[bytes], at: int, cut: bool
) -> None:
    rows = [json.dumps(record(step).to_row("now")).encode() for step in (1, 2)]
    lines = [*rows[:at], *damage, *rows[at:]]
    for name in ("metrics.jsonl", "alarms.jsonl"):
        (tmp_path / name).write_bytes(b"\n".join(lines) + (b'\n{"st' if cut else b"\n"))
    said: list[str] = []
    sink = JsonlSink(tmp_path, said.append, resume_step=1)
    sink.write(record(2, train_rollouts__asr=0.5))
    assert [r.step for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2]
    assert said == [f"{tmp_path / 'metrics.jsonl'}: {len(damage)} damaged line{'s' * (len(damage) > 1)} dropped"]
    AlarmWriter(tmp_path, said.append, resume_step=1)
    assert len((tmp_path / "alarms.jsonl").read_bytes().splitlines()) == 1
    assert len(said) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_figures_that_a_disk_does_not_take_are_kept_until_it_does(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open
    takes = iter([3, None, None])  # half of a line, then nothing

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            taken = next(takes, "all")
            if taken == "all":
                return super().write(data)
            if taken is None:
                raise OSError(code, os.strerror(code))
            return super().write(memoryview(data)[:taken])

    def refusing(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return Full(self, "a") if mode == "ab" else opened(self, mode, *rest, **options)

    with MetricLogger(config(tmp_path), is_main=True) as logger:
        logger.record(record(1))
        with monkeypatch.context() as full:
            full.setattr(Path, "open", refusing)
            logger.record(record(2))
            assert len(read_records(tmp_path / "metrics.jsonl")) == 1  # no half of a line is left
            logger.record(record(3))
        logger.record(record(4))
    assert [r.step for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    said = capsys.readouterr().out
    assert said.count(f"metrics.jsonl cannot be written: [Errno {code}]") == 1
    assert "metrics.jsonl is written again, with the 3 lines that were kept" in said


NAMES = ("metrics.jsonl", "alarms.jsonl", "samples", "tensorboard", "report.html")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resumed", [True, False])
def test_what_stands_where_a_file_should_be_ends_no_run(
    name: str, resumed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder instead of a file, a file instead of a folder; in a new run they come in between."""
    wrong = tmp_path / name
    step = 1 if resumed else None

    def stand_there() -> None:
        if "." in name:
            (wrong / "x").mkdir(parents=True)
        else:
            wrong.write_text("x")

    if resumed:
        stand_there()
    event = AlarmEvent(1, "mismatch", True, "warn", 2.0, "far", "a", "b")
    logged = config(tmp_path, create_tensorboard_logger=name == "tensorboard")
    with MetricLogger(logged, is_main=True, resume_step=step) as logger:
        if not resumed and not wrong.exists():
            stand_there()
        for n in (2, 3):
            logger.record(record(n, val_rollouts__asr=0.1), [game(n)], [event])
        logger.write_final_report()
    said = capsys.readouterr().out
    for other in NAMES:
        if other not in (name, "tensorboard") and (other != "report.html" or not name.endswith(".jsonl")):
            assert (tmp_path / other).exists(), said
    if resumed or name in ("alarms.jsonl", "samples", "report.html"):
        assert f"{name} " in said or (name == "tensorboard" and "TensorBoard is not written" in said)


def test_a_sink_that_fails_is_said_once_and_used_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: ConsoleTable, record: StepRecord) -> None:
        calls.append(record.step)
        raise RuntimeError("terminal gone")

    monkeypatch.setattr(ConsoleTable, "write", fail)
    with MetricLogger(config(tmp_path), is_main=True) as logger:
        for step in (1, 2):
            logger.record(record(step))
    assert calls == [1]
    assert capsys.readouterr().out.count("ConsoleTable is not written: RuntimeError: terminal gone") == 1
    assert len(read_records(tmp_path / "metrics.jsonl")) == 2


def test_samples_hold_the_whole_conversation(tmp_path: Path) -> None:
    with MetricLogger(config(tmp_path, num_logged_samples=3), is_main=True) as logger:
        logger.record(record(7), [game(i) for i in range(9)])
    rows = [json.loads(line) for line in (tmp_path / "samples" / "step_0007.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    text = json.dumps(rows[0])
    for part in ("why", "harmful", "safe", '"harm": 1.0'):
        assert part in text


@pytest.mark.process
def test_tensorboard_and_wandb_get_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_SILENT", "true")
    both = config(
        tmp_path,
        create_tensorboard_logger=True,
        create_wandb_logger=True,
        wandb_logger_kwargs=WandbConfig(mode="offline"),
    )
    with MetricLogger(both, is_main=True) as logger:
        logger.record(record(1, train_rollouts__asr=0.5))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_rollouts/asr")] == [(1, 0.5)]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_without_a_terminal_every_step_is_one_line() -> None:
    out = io.StringIO()
    table = ConsoleTable("t", total_steps=9, console=Console(file=out, width=80))
    table.write(record(3, train_rollouts__asr=0.125, timers__step=0.5))
    table.close()
    assert out.getvalue().startswith("step 3/9 | phase 1 (defender, defender learns) | ASR 12.5%")
    assert out.getvalue().count("\n") == 1


def test_on_a_terminal_the_table_shows_the_latest_steps() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160, height=50, force_terminal=True)
    table = ConsoleTable("my run", total_steps=9, console=console, live=True)
    for step in range(1, 4):
        table.write(record(step, train_rollouts__asr=step / 10, val_rollouts__asr=0.9))
    table.close()
    for word in ("my run", "ASR", "30.0", "90.0"):
        assert word in out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_narrow_screen_loses_whole_columns_and_never_the_end_of_a_figure(width: int) -> None:
    out = io.StringIO()
    table = ConsoleTable("run", console=Console(file=out, width=width), live=False)
    names = ("asr", "over_refusal", "useful", "intent_preserved", "format_ok", "reward_attacker", "reward_defender")
    rollout = {f"train_rollouts__{name}": 0.125 for name in names}
    table.write(record(1, **rollout, train_optim__loss=0.5, timers__step=1.5, throughput__tokens_per_second=123456.0))
    out.truncate(0)
    table.console.print(table.render())
    assert "…" not in out.getvalue()
    for word in ("ASR", "over-refusal", "useful", "12.5%"):
        assert word in out.getvalue()


def test_timers_add_up_and_start_over() -> None:
    now = iter([0.0, 1.0, 5.0, 7.0])
    timers = Timers(clock=lambda: next(now))
    for _ in range(2):
        with timers("update"):
            pass
    assert timers.drain() == {"timers/update": 3.0}
    assert timers.drain() == {}


def test_the_picture_and_the_summary_are_made_from_the_files(tmp_path: Path) -> None:
    with MetricLogger(config(tmp_path), is_main=True) as logger:
        logger.record(record(0, None, val_rollouts__asr=0.9, val_rollouts__useful=0.9, val_rollouts__over_refusal=0.0))
        for step in range(1, 7):
            learner = "defender" if (step - 1) // 2 % 2 == 0 else "attacker"
            logger.record(record(step, learner, train_rollouts__asr=0.5, val_rollouts__asr=0.1 * step))
    matrix = CrossPlay(["no rewrite", "start", "phase-01"], ["start", "phase-00"], [[0, 0], [0.5, 0.2], [0.75, 0.1]])
    (tmp_path / "crossplay.json").write_text(matrix.to_json())
    ends = {"start": {"asr": {"none": 0.0, "shift": 0.9}}, "end": {"asr": {"none": 0.02, "shift": 0.0}}}
    probe = {when: {**found, "worst": max(found["asr"].values()), "mean": 0.1} for when, found in ends.items()}
    (tmp_path / "strategies.json").write_text(json.dumps(probe))
    picture = draw_game(tmp_path / "metrics.jsonl", tmp_path / "crossplay.json", tmp_path / "game.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(picture.read_bytes()) > 10_000
    spans = phase_spans(read_records(tmp_path / "metrics.jsonl"))
    assert [who for _, _, who in spans] == ["defender", "attacker", "defender"]
    out = io.StringIO()
    print_summary(tmp_path, Console(file=out, width=100))
    for text in (
        "90.0%",
        "60.0%",
        "+25.0 points over start",
        "phase-00 is the best column",
        "First defender under each of 2 strategies: worst 90.0 % (shift)",
        "Last defender under each of 2 strategies: worst 2.0 % (none)",
    ):
        assert text in out.getvalue(), out.getvalue()
