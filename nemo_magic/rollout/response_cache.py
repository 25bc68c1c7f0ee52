"""Answers and verdicts on disk, found again by a digest of the question: JSON lines that are only appended.

It belongs to one evaluation or analysis. The servers of a machine share ``judge/cache.py`` instead.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_magic.fsync_io import private_folder, sync_folder


def cache_key(*parts: Any) -> str:
    """A name for a question: equal for equal values only, whatever process asks."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


class ResponseCache:
    """Values by key in ``folder``: one file for each rank that writes, all of them read.

    A line counts once it is whole and durable; what a kill left of another is cut off. Whatever number of ranks wrote
    it, any number can go on.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._values: dict[str, Any] = {}
        self._path = folder / f"rank-{rank:05d}.jsonl"
        private_folder(folder)
        for path in sorted(folder.glob("rank-*.jsonl")):
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def add(self, values: Mapping[str, Any]) -> None:
        """Write down, and wait until it is durable."""
        if not values:
            return
        lines = (json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n" for key, value in values.items())
        new = not self._path.exists()
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self._path.parent)
        self._values.update(values)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not there, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._values]

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content) and path == self._path:
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._values[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is damaged: remove the line, or the file ({error})"
                ) from error
