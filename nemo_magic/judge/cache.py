"""Texts that a guard's model has written, cached over restarts and shared by the servers of one machine.

An entry is (key, text): the key is a digest of the question, so that no text under judgement is ever on disk. The cache
can only save a call: every failure of it, and every entry that is not exactly what was written, is a miss.

The other store on disk, ``rollout/response_cache.py``, is JSON lines of one writer each, read whole at the start: that
is right for one run's folder. Here several servers read and write at the same time, each sees the others' entries, and
the oldest are dropped: a database does that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemo_magic.judge.telemetry import NO_TELEMETRY, Telemetry

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, text BLOB NOT NULL, seal BLOB NOT NULL
)
"""
_KEYS_PER_QUERY = 500
"""SQLite's older builds take 999."""
MAX_TEXT = 10_000
"""Characters; longer texts are not cached, so that the size of the file is bounded by the number of its entries."""
_MAX_FILES = 3
"""The file in use, and how many corrupt ones beside it are left for inspection, together."""


class Cache:
    """The texts in the SQLite file ``path``, at most ``max_entries`` of them, the oldest dropped first.

    Any number of processes of one machine may share a file (not over a network file system); killing one loses at most
    what it had not written yet. A file that turns out to be corrupt is reported and left as it is, and the next one is
    begun beside it, named ``path.1``, ``path.2`` …: a name is never used again, because SQLite's own files go by name.

    Raises ValueError for a number of entries below 1, OSError if the folder cannot be made.
    """

    def __init__(self, path: str | Path, max_entries: int = 1_000_000) -> None:
        if max_entries < 1:
            raise ValueError(f"cache.max_entries={max_entries} must be at least 1")
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.telemetry: Telemetry = NO_TELEMETRY
        self._max_entries = max_entries
        self._connection: sqlite3.Connection | None = None
        self._generation = -1
        self._failing = False
        self._unwritten: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="judge cache")

    async def get(self, keys: Sequence[bytes]) -> Mapping[bytes, str]:
        """The texts of those keys that have one. Raises RuntimeError once the cache is closed."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._read, keys)

    def put(self, key: bytes, text: str) -> None:
        """Have ``text`` written soon; returns at once."""
        if len(text) > MAX_TEXT:
            return
        with self._lock:
            self._unwritten[key] = text.encode(errors="surrogatepass")
            if len(self._unwritten) > 1:
                return  # the first entry has called the writer
        with suppress(RuntimeError):  # closed
            self._worker.submit(self._write)

    async def close(self) -> None:
        """Write what is not written yet."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with suppress(RuntimeError):  # closed before
            self._worker.submit(self._disconnect)
        self._worker.shutdown()

    def _read(self, keys: Sequence[bytes]) -> Mapping[bytes, str]:
        texts: dict[bytes, str] = {}

        def look_up(connection: sqlite3.Connection) -> None:
            texts.clear()
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                part = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT key, text, seal FROM texts WHERE key IN ({marks})", part)
                texts.update(self._verify(rows))

        return texts if self._try(look_up) else {}

    def _verify(self, rows: Iterable[tuple[Any, Any, Any]]) -> dict[bytes, str]:
        """The entries that are what was written. SQLite checks its pages' structure, not their content."""
        texts = {}
        for key, text, seal in rows:
            if not (isinstance(key, bytes) and isinstance(text, bytes)) or seal != _seal(key, text):
                raise _Corrupt("an entry is not what was written")
            texts[key] = text.decode(errors="surrogatepass")
        return texts

    def _write(self) -> None:
        with self._lock:
            pending, self._unwritten = self._unwritten, {}
        if not pending:
            return
        rows = [(key, text, _seal(key, text)) for key, text in pending.items()]

        def insert(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO texts (key, text, seal) VALUES (?, ?, ?)", rows)
                # Ids only grow, so that the span of ids bounds the number of rows: nothing is counted.
                connection.execute(
                    "DELETE FROM texts WHERE id <= (SELECT max(id) FROM texts) - ?", (self._max_entries,)
                )

        self._try(insert)

    def _try(self, work: Callable[[sqlite3.Connection], None]) -> bool:
        """Do ``work``, on a new file if this one is corrupt. Returns whether it was done."""
        for _ in range(2):
            try:
                work(self._connect())
                self._failing = False
                return True
            except (sqlite3.Error, OSError, ValueError) as error:
                if not self._recover(error):
                    break
        return False

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._generation = max(self._generation, self._newest())
            connection = sqlite3.connect(self._file(self._generation), timeout=5.0, check_same_thread=False)
            try:
                # WAL: readers do not wait for a writer, and a killed process leaves nothing half done.
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(_SCHEMA)
                connection.commit()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _recover(self, error: Exception) -> bool:
        """After an error: begin a new file and return True if this one is corrupt, else go on without a cache."""
        # This class and no subclass is SQLITE_CORRUPT and SQLITE_NOTADB; the codes themselves come with Python 3.11.
        corrupt = isinstance(error, _Corrupt) or type(error) is sqlite3.DatabaseError
        self.telemetry.count("cache_errors", kind="corrupt" if corrupt else type(error).__name__)
        self._disconnect()
        if corrupt:
            broken = self._file(self._generation)
            self._generation = max(self._generation + 1, self._newest())
            logger.error(
                "the cache %s is corrupt (%s): it is left as it is, and %s takes its place",
                broken,
                error,
                self._file(self._generation),
            )
            self._delete_old()
        elif not self._failing:
            logger.warning("the cache %s cannot be used now, the model is asked: %s", self.path, error)
        self._failing = not corrupt
        return corrupt

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _newest(self) -> int:
        """The number of the file in use: the highest that is there."""
        prefix = f"{self.path.name}."
        ends = (name.removeprefix(prefix) for name in os.listdir(self.path.parent) if name.startswith(prefix))
        return max((int(end) for end in ends if end.isdecimal()), default=0)

    def _file(self, generation: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{generation}") if generation else self.path

    def _delete_old(self) -> None:
        for generation in range(self._generation - _MAX_FILES + 1):
            for suffix in ("", "-wal", "-shm"):
                path = self._file(generation)
                path.with_name(path.name + suffix).unlink(missing_ok=True)


class _Corrupt(ValueError):
    """The file holds an entry that no server wrote."""


def _seal(key: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(key + text, digest_size=16).digest()
