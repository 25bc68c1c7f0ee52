"""A rank that hangs is found out, by real ranks of a real world and by what they leave behind."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from nemo_magic.config.experiment import ExpManagerConfig
from nemo_magic.runtime.postmortem import culprit, read_positions, report
from nemo_magic.runtime.timers import Timers
from nemo_magic.runtime.watchdog import EXIT_HUNG, FOLDER, RankPosition, Watchdog, alarm_of
from tests.training.program import Game, gone, ranks_of, run, start, steps, wait_for

# On SIGUSR2 a rank's main thread falls asleep wherever it is, as if a file system never answered.
STUCK = """
import signal, time
def stuck(number, frame):
    time.sleep(3600)
signal.signal(signal.SIGUSR2, stuck)
"""


@dataclass(frozen=True)
class Hung:
    """A run that hung, what its log and the post-mortem say, and its status."""

    folder: Path
    said: str
    status: int


@pytest.fixture(scope="module")
def hung(game: Game, tmp_path_factory: pytest.TempPathFactory) -> dict[signal.Signals, Hung]:
    """Played side by side; after two rounds rank 1 is sent one of these signals. Then all there is to do is wait."""
    home, running = tmp_path_factory.mktemp("hung"), {}
    (home / "sitecustomize.py").write_text(STUCK)
    for number in (signal.SIGUSR2, signal.SIGSTOP):
        log, words = home / number.name, game.quick(number.name, "game.max_steps=500", "exp_manager.hang_timeout=8")
        running[number] = start(*words, log=log, modules=home), log, game.folder(number.name)
    everyone = {}
    for number, (playing, log, folder) in running.items():
        wait_for(lambda folder=folder: steps(folder) > 2, playing, log)  # type: ignore[misc]
        everyone[number] = ranks_of(playing)
        os.kill(everyone[number][1], number)
    found = {}
    for number, (playing, log, folder) in running.items():
        status = playing.wait(timeout=240)
        assert all(gone(pid) for pid in everyone[number])
        found[number] = Hung(folder, log.read_text() + run("postmortem", str(folder)).stdout, status)
    return found


@pytest.mark.process
def test_a_rank_that_falls_asleep_is_named_with_host_part_and_line(hung: dict[signal.Signals, Hung]) -> None:
    asleep = hung[signal.SIGUSR2]
    assert asleep.status == EXIT_HUNG
    said = asleep.said
    last = said.splitlines()[-1]
    assert last.startswith("culprit: rank 1 on ")
    assert "sitecustomize.py:4 stuck" in last
    assert "the others wait in" in last
    # Whichever rank ends first takes the other with it, before that may have said so too.
    assert re.search(r"nemo-magic: rank [01] on ", said)
    (first, second) = read_positions(asleep.folder / FOLDER)
    assert (first.rank, second.rank, first.world) == (0, 1, 2)
    assert any("torch/distributed" in frame for frame in first.stacks["main"])


@pytest.mark.process
def test_a_stopped_process_is_named_though_it_says_nothing(hung: dict[signal.Signals, Hung]) -> None:
    stopped, host = hung[signal.SIGSTOP], socket.gethostname()
    assert stopped.status == EXIT_HUNG
    assert stopped.said.splitlines()[-1].startswith(
        f"culprit: rank 1 on {host}: nothing was written in time; the process was stopped"
    )


def place(rank: int, step: int = 7, moves: int = 40, part: str = "step/update", *frames: str) -> RankPosition:
    waiting = ("/x/torch/distributed/distributed_c10d.py:1 all_reduce", "/y/nemo_magic/actors/world.py:75 total")
    return RankPosition("1.0", rank, 3, f"node{rank}", 10, step, part, moves, 60.0, {"main": list(frames or waiting)})


def test_the_rank_that_got_least_far_is_the_culprit() -> None:
    found = culprit([place(0), place(1, 7, 38, "step/judge_wait", "/z/asking.py:3 wait"), place(2)])
    assert found.startswith(
        "rank 1 on node1 in step 7, step/judge_wait, at /z/asking.py:3 wait; the others wait in step/update"
    )


def test_of_those_equally_far_the_one_outside_a_collective_is() -> None:
    assert culprit([place(0), place(1), place(2, 7, 40, "step/update", "/z/loader.py:9 read")]).startswith(
        "rank 2 on node2"
    )


def test_a_rank_that_sleeps_on_top_of_a_collective_does_not_wait_in_it() -> None:
    asleep = place(1, 7, 40, "step/update", "/z/hook.py:4 stuck", *place(0).stacks["main"])
    assert culprit([place(0), asleep, place(2)]).startswith("rank 1 on node1")


def test_a_rank_whose_checkpoint_is_still_being_written_is_the_one_that_all_wait_for() -> None:
    found = culprit([place(0), replace(place(1), children=[4711]), place(2)])
    assert found.startswith("rank 1 on node1")
    assert "a process of its own that has not ended (a checkpoint's writer?): 4711; the others wait in" in found


def test_where_all_wait_elsewhere_nobody_is_accused() -> None:
    apart = [place(rank, 7, 40, "step/update", f"/z/part{rank}.py:1 work") for rank in range(3)]
    assert culprit(apart).startswith("none stands out: all 3 ranks are equally far, in step 7, at /z/part0.py:1 work; ")


def test_where_all_wait_alike_nobody_is_accused() -> None:
    assert culprit([place(0), place(1), place(2)]).startswith("none stands out: all 3 ranks")


def test_ranks_without_a_word_are_named_together() -> None:
    assert culprit([place(1)]).startswith("ranks 0, 2: nothing was written in time")
    assert culprit([place(1)], ["a", "b", "c"]).startswith("ranks 0 on a, 2 on c: nothing was written in time")


def test_what_an_earlier_attempt_wrote_is_not_mixed_in(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for age, one in enumerate([replace(place(0), attempt="1.0"), replace(place(1), attempt="1.1")]):
        path = folder / f"rank-{one.rank:04d}.json"
        path.write_text(json.dumps(asdict(one)))
        os.utime(path, (age, age))
    assert [p.attempt for p in read_positions(folder)] == ["1.1"]


def test_what_a_stopped_rank_writes_when_it_is_told_to_end_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    alarm = alarm_of(folder, "1.0")
    alarm.touch()
    for age, one in ((0, place(0)), (20, place(1)), (40, place(2))):
        path = folder / f"rank-{one.rank:04d}.json"
        path.write_text(json.dumps(asdict(one)))
        os.utime(path, (alarm.stat().st_mtime + age,) * 2)
    assert [p.rank for p in read_positions(folder)] == [0, 1]


@pytest.mark.slow
def test_a_rank_that_moves_is_left_alone_and_one_that_does_not_is_ended(tmp_path: Path) -> None:
    timers, ended, statuses = Timers(), threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    moving = threading.Event()
    with Watchdog(tmp_path, 0.5, 0, ["here"], timers, lambda: 3, end):
        for _ in range(20):
            with timers("update"):
                assert not moving.wait(0.05)
        assert not statuses
        with timers("logprobs"):
            assert ended.wait(30)
    (found,) = read_positions(tmp_path / FOLDER)
    assert (statuses, found.step, found.part, found.host) == ([EXIT_HUNG], 3, "logprobs", "here")


def test_nobody_watches_where_no_timeout_is_set(tmp_path: Path) -> None:
    with Watchdog(tmp_path, None, 0, ["here"], Timers(), lambda: 1):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="exp_manager.hang_timeout=0 must be greater than 0"):
        ExpManagerConfig(hang_timeout=0)


def test_the_flight_recorder_says_who_did_not_come_to_the_collective(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "12.0"
    logs.mkdir(parents=True)
    for rank, (number, state) in enumerate([(9, "started"), (8, "completed")]):
        done = {"collective_seq_id": 8, "process_group": ("0", "default_pg"), "state": "completed"}
        entry = done | {"collective_seq_id": number, "profiling_name": "nccl:all_reduce", "state": state}
        entries = [done, entry] if number > 8 else [entry]
        (logs / f"nccl_trace_rank_{rank}").write_bytes(pickle.dumps({"version": "2.2", "entries": entries}))
    (line, last) = report(tmp_path)
    assert "rank 1 is at collective 8 (nccl:all_reduce, completed)" in line
    assert "others at 9" in line
    assert last == f"culprit: {line}"


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("planted",))


def test_a_pickle_that_would_run_something_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs" / "12.0").mkdir(parents=True)
    (tmp_path / "logs" / "12.0" / "nccl_trace_rank_0").write_bytes(pickle.dumps({"entries": [Trap()]}))
    (line,) = report(tmp_path)
    assert line.endswith("says anything of a failure")
    assert not Path("planted").exists()


def test_the_one_rank_whose_log_ends_in_an_error_is_the_culprit(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "12.1"
    logs.mkdir(parents=True)
    (logs / "rank-0000.log").write_text("step 3\n")
    (logs / "rank-0001.log").write_text("Traceback\n  File\nOSError: [Errno 5] Input/output error\n")
    assert list(report(tmp_path)) == [
        "rank 1 said last: OSError: [Errno 5] Input/output error",
        "culprit: rank 1, the only one that failed by itself",
    ]


def test_of_ranks_that_all_end_in_an_error_the_one_that_ended_first_is_the_culprit(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "12.1"
    logs.mkdir(parents=True)
    for rank in (0, 1, 3):
        (logs / f"rank-{rank:04d}.log").write_text(f"step 3\n[rank{rank}]: RuntimeError: connection closed by peer\n")
    (logs / "rank-0002.log").write_text("rank: line 3: 22274 Killed\n")
    (logs / "srun.log").write_text(
        "srun: error: node7: task 2: Exited with exit code 137\nsrun: Terminating StepId=12.2\n"
        "srun: error: node7: tasks 0-1,3: Exited with exit code 1\n"
    )
    *last, culprit = report(tmp_path)
    assert culprit == "culprit: rank 2 on node7 ended first: Exited with exit code 137 (SIGKILL)"
    assert last[0] == "rank 0 said last: [rank0]: RuntimeError: connection closed by peer"
    assert len(last) == 4


def test_a_run_that_knows_why_it_ends_accuses_nobody(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "12.1"
    logs.mkdir(parents=True)
    why = "nemo-magic train: step 2: no answer from http://judge:1 for 600 s (judge.give_up_after=600); saved after 1"
    (logs / "rank-0000.log").write_text(f"step 1\n{why}\n")
    (logs / "srun.log").write_text("srun: error: node7: task 1: Exited with exit code 1\n")
    assert list(report(tmp_path))[-1] == f"the run ended by itself: {why}"
