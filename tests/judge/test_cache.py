import asyncio
import hashlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nemo_magic.judge.cache import MAX_TEXT, Cache
from tests.judge.guard_models import Remembering


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def get(path: Path, *names: object) -> list[str | None]:
    async def run() -> list[str | None]:
        cache = Cache(path)
        found = await cache.get([key(name) for name in names])
        await cache.close()
        return [found.get(key(name)) for name in names]

    return asyncio.run(run())


def put(path: Path, pairs: dict[object, str], max_entries: int = 1000) -> None:
    async def run() -> None:
        cache = Cache(path, max_entries)
        for name, text in pairs.items():
            cache.put(key(name), text)
        await cache.close()

    asyncio.run(run())


def test_what_is_put_is_found_again_and_nothing_else(tmp_path):
    path = tmp_path / "a folder [1]" / "texts"
    put(path, {1: "one", 2: "zw\u00f6lf \U0001f600", 3: "lone \ud800", 4: ""})
    assert get(path, 1, 2, 3, 4, 5) == ["one", "zw\u00f6lf \U0001f600", "lone \ud800", "", None]


def test_many_keys_are_looked_up_at_once(tmp_path):
    put(tmp_path / "texts", {name: f"text {name}" for name in range(0, 3000, 2)}, 5000)
    found = get(tmp_path / "texts", *range(3000))
    assert found == [f"text {name}" if name % 2 == 0 else None for name in range(3000)]


def test_the_oldest_are_dropped_where_there_are_too_many_and_the_file_stays_as_large_as_it_is(tmp_path):
    path = tmp_path / "texts"
    sizes = []
    for start in range(0, 10_000, 1000):
        put(path, {name: f"text {name}" for name in range(start, start + 1000)}, max_entries=500)
        sizes.append(path.stat().st_size)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM texts").fetchone() == (500,)
    assert get(path, 9999, 9500, 9499, 0) == ["text 9999", "text 9500", None, None]
    assert max(sizes[3:]) <= sizes[2] * 1.2


def test_what_is_too_long_for_a_verdict_is_not_kept(tmp_path):
    put(tmp_path / "texts", {1: "x" * MAX_TEXT, 2: "x" * (MAX_TEXT + 1)})
    assert get(tmp_path / "texts", 1, 2) == ["x" * MAX_TEXT, None]


WRITER = """
import asyncio, hashlib, sys
from nemo_magic.judge.cache import Cache

async def run():
    cache = Cache(sys.argv[1])
    number, step = int(sys.argv[2]), int(sys.argv[3])
    for number in range(number, int(sys.argv[4]), step):
        cache.put(hashlib.sha256(str(number).encode()).digest(), f"text {number}")
        if number % 50 < step:
            await cache.get([b"whatever"])  # behind what is to be written
            print(number, flush=True)
    await cache.close()

asyncio.run(run())
"""


def writer(path: Path, start: int, step: int, end: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(start), str(step), str(end)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
def test_a_killed_process_leaves_a_cache_that_holds_what_was_written_and_takes_more(tmp_path):
    path = tmp_path / "texts"
    for start in (0, 10_000_000):
        process = writer(path, start, 1, start + 10_000_000)
        assert process.stdout is not None
        for _ in range(5):
            written = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        names = range(start, written)
        assert get(path, *names) == [f"text {name}" for name in names]
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(("-wal", "-shm"))] == ["texts"]


@pytest.mark.process
def test_several_processes_write_and_read_one_file(tmp_path):
    path = tmp_path / "texts"
    processes = [writer(path, start, 3, 600) for start in range(3)]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert get(path, *range(600)) == [f"text {name}" for name in range(600)]


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database at all, whatever its name may be" * 100)


def _torn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 100] = os.urandom(len(content) - 4196)
    path.write_bytes(content)


def _other_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, key BLOB, text BLOB, seal BLOB)")
        connection.execute("INSERT INTO texts VALUES (1, ?, ?, ?)", (key(1), b"made up", b"made up"))
        connection.execute("INSERT INTO texts VALUES (2, ?, ?, ?)", (key(2), "made up", None))


def _changed_text(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE texts SET text = ? WHERE key = ?", (b"one!", key(1)))
        connection.execute("UPDATE texts SET text = (SELECT text FROM texts WHERE key = ?)", (key(3),))


@pytest.mark.parametrize("damage", [_garbage, _torn, _other_table, _changed_text])
def test_a_corrupt_file_is_reported_kept_aside_and_begun_anew_and_nothing_in_it_is_believed(tmp_path, caplog, damage):
    path = tmp_path / "texts"
    put(path, {name: f"text {name}" for name in range(500)})
    damage(path)
    size = path.stat().st_size
    observer = Remembering()

    async def run():
        cache = Cache(path)
        cache.telemetry = observer
        with caplog.at_level(logging.ERROR):
            found = await cache.get([key(name) for name in range(500)])
        assert all(text == f"text {name}" for name in range(500) if (text := found.get(key(name))))
        assert len(found) < 500
        cache.put(key("new"), "new text")
        await cache.close()

    asyncio.run(run())
    [report] = caplog.messages
    assert "is corrupt" in report
    assert report.endswith(f"{path}.1 takes its place")
    assert observer.counts["cache_errors"] == 1
    assert path.stat().st_size == size
    assert get(path, "new", 1, 400) == ["new text", None, None]  # the next process goes on with the new file


def test_at_most_two_corrupt_files_are_kept_aside(tmp_path):
    path = tmp_path / "texts"
    for number in range(5):
        _garbage(path if number == 0 else tmp_path / f"texts.{number}")
        assert get(path, 1) == [None]
        put(path, {1: f"text {number}"})
        assert get(path, 1) == [f"text {number}"]
    left = {file.name for file in tmp_path.iterdir() if not file.name.endswith(("-wal", "-shm"))}
    assert left == {"texts.3", "texts.4", "texts.5"}


def test_a_cache_that_cannot_be_written_is_said_once_and_done_without(tmp_path, caplog):
    path = tmp_path / "texts"
    path.mkdir()  # no file can be there

    async def run():
        cache = Cache(path)
        for name in range(3):
            cache.put(key(name), "text")
            assert await cache.get([key(name)]) == {}
        await cache.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    [report] = caplog.messages
    assert "cannot be used now, the model is asked" in report


def test_a_locked_file_is_waited_for_and_used_again(tmp_path):
    path = tmp_path / "texts"
    put(path, {1: "one"})

    async def run():
        cache = Cache(path)
        assert await cache.get([key(1)]) == {key(1): "one"}
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        cache.put(key(2), "two")
        await asyncio.sleep(0)
        other.execute("COMMIT")
        other.close()
        assert (await cache.get([key(2)])) == {key(2): "two"}
        await cache.close()

    asyncio.run(run())


def test_a_cache_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cache.max_entries=0 must be at least 1"):
        Cache(tmp_path / "texts", 0)
