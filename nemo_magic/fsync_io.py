"""Durable writes: files and folders that are on the disk when the call returns."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write a UTF-8 text file, and wait until it is durable."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str) -> None:
    """Write a text file durably, whole or not at all: whoever reads it meanwhile sees the text before or this one.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    with replacing(path) as partial:
        write_durably(partial, text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which becomes ``path`` when the context ends, and is removed on an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Wait until the content of an existing file is durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder (names, not contents) are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> str | None:
    """Create ``folder`` for its owner alone (0700): a run's texts may be harmful, its configuration is its owner's.

    Returns why others can read it nevertheless, if they can: it was there before, or its file system knows no modes.
    """
    is_new = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (mode := stat.S_IMODE(folder.stat().st_mode)) & 0o077:
        return None
    why = "its file system does not keep modes" if is_new else "it was there before, and keeps its mode"
    return f"{folder} can be read by others (mode {mode:04o}): {why}; `chmod 700 {folder}` if they should not"
