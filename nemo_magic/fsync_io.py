"""Durable writes: files and folders that are on the disk when the call returns."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write a UTF-8 text file, and wait until it is durable."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str) -> None:
    """Write a text file durably, whole or not at all: whoever reads it meanwhile sees the text before or this one."""
    partial = path.with_name(f".{path.name}.partial")
    write_durably(partial, text)
    partial.replace(path)


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
