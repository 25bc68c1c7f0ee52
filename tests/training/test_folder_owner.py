"""One owner per run folder: named, released by its end or its death, and taken over from nobody who lives."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_magic.runtime.errors import FolderInUseError
from nemo_magic.runtime.folder_owner import EXIT_LOST, FolderOwner, Owner

LEASE = 0.2
NO_PROCESS = 2**22 + 1  # above what Linux gives
HERE = Owner.of_process()
ELSEWHERE = replace(HERE, host="node7", machine="another boot")


def cannot_ask(job: str) -> bool | None:
    return None


def written(folder: Path, owner: Owner | str, number: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"owner-{number:04d}.json"
    path.write_text(owner if isinstance(owner, str) else json.dumps(asdict(owner)))
    return path


def owning(folder: Path, job_lives: Callable[[str], bool | None] = cannot_ask, **options: object) -> FolderOwner:
    said: list[str] = []
    owner = FolderOwner(folder, said.append, lease=LEASE, job_lives=job_lives, **options)  # type: ignore[arg-type]
    owner.said = said  # type: ignore[attr-defined]
    return owner


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_says_who_owns_it_and_when_it_is_released(tmp_path: Path) -> None:
    with owning(tmp_path / "run"):
        (path,) = (tmp_path / "run").iterdir()
        owner = Owner(**json.loads(path.read_text()))
        assert (owner.pid, owner.host, owner.released) == (os.getpid(), HERE.host, False)
        assert owner.since.endswith("+00:00")
        with (
            pytest.raises(FolderInUseError, match=rf"belongs to another run.*process {os.getpid()} on .*, since 20"),
            owning(tmp_path / "run"),
        ):
            pass
        assert files(tmp_path / "run") == ["owner-0001.json"]
    assert json.loads(path.read_text())["released"]
    with owning(tmp_path / "run"):
        assert files(tmp_path / "run") == ["owner-0002.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "gone",
    [
        replace(HERE, pid=NO_PROCESS),
        replace(HERE, begun="1"),  # its number is another process's by now
        replace(ELSEWHERE, released=True),
        replace(ELSEWHERE, job="41", restart=0),
        ELSEWHERE,
        replace(ELSEWHERE, job="77"),
        "",
        "{",
        '{"host": "x"}',
    ],
)
def test_a_folder_is_taken_over_from_an_owner_that_is_gone(
    gone: Owner | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    written(tmp_path, gone, 7)
    with owning(tmp_path) as owner:
        assert files(tmp_path) == ["owner-0008.json"]
        # Only what nobody can be asked about is watched for a while, and the user told of it.
        watched = any("looking for signs of life" in line for line in owner.said)  # type: ignore[attr-defined]
        assert watched == (gone in (ELSEWHERE, replace(ELSEWHERE, job="77"), "", "{", '{"host": "x"}'))


@pytest.mark.parametrize("owner", [HERE, ELSEWHERE, replace(ELSEWHERE, job="77"), ""])
def test_a_living_owner_keeps_its_folder(owner: Owner | str, tmp_path: Path) -> None:
    path, over = written(tmp_path, owner), threading.Event()

    def live() -> None:
        number = 0
        while not over.wait(LEASE / 20):
            number += 1
            os.utime(path, ns=(number, number))  # any change: its clock may be any

    beating = threading.Thread(target=live)
    beating.start()
    try:
        with pytest.raises(FolderInUseError, match=rf"remove {path}"), owning(tmp_path):
            pass
    finally:
        over.set()
        beating.join()
    assert files(tmp_path) == [path.name]


@pytest.mark.parametrize(("lives", "taken"), [(True, False), (False, True)])
def test_slurm_is_asked_about_a_job_on_another_node(lives: bool, taken: bool, tmp_path: Path) -> None:
    written(tmp_path, replace(ELSEWHERE, job="77"))
    asked = []

    def job_lives(job: str) -> bool:
        asked.append(job)
        return lives

    owner = owning(tmp_path, job_lives)
    if taken:
        with owner:
            assert files(tmp_path) == ["owner-0002.json"]
    else:
        with pytest.raises(FolderInUseError, match="process .* on node7 of Slurm's job 77, since"), owner:
            pass
    assert set(asked) == {"77"}
    assert not any("signs of life" in line for line in owner.said)  # type: ignore[attr-defined]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 8), left=st.sampled_from([None, replace(HERE, pid=NO_PROCESS), replace(HERE, begun="1")]))
def test_of_all_that_come_at_once_one_gets_the_folder(
    tmp_path_factory: pytest.TempPathFactory, count: int, left: Owner | None
) -> None:
    folder = tmp_path_factory.mktemp("run")
    if left is not None:
        written(folder, left, 3)
    ready, done = threading.Barrier(count), threading.Barrier(count)
    won = []

    def come() -> None:
        ready.wait()
        try:
            with owning(folder):
                won.append(True)
                done.wait()
        except FolderInUseError:
            done.wait()

    threads = [threading.Thread(target=come) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [True]


@pytest.mark.parametrize("taken", [True, False])
def test_an_owner_that_was_given_up_ends_instead_of_writing_on(taken: bool, tmp_path: Path) -> None:
    ended = threading.Event()
    statuses = []

    def lost(status: int) -> None:
        statuses.append(status)
        ended.set()

    with owning(tmp_path, lost=lost) as owner:
        owner.keep()
        if taken:
            written(tmp_path, ELSEWHERE, 2)
        else:
            (tmp_path / "owner-0001.json").unlink()
        assert ended.wait(20)
    assert statuses == [EXIT_LOST]
    # What is somebody else's by now is not released.
    assert not any(json.loads(path.read_text())["released"] for path in tmp_path.iterdir())
