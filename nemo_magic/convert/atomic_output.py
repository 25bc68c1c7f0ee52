"""An output that is complete or absent: written aside, made durable, renamed. Imports neither torch nor NeMo."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_magic.fsync_io import sync_file, sync_folder
from nemo_magic.hf_format.errors import ConvertError

_MARGIN = 64 << 20


def refuse_target(target: Path, needed: int) -> None:
    """Refuse a target that exists, or whose disk has less than ``needed`` bytes and a margin.

    Raises:
        ConvertError: in either case.
    """
    if target.exists() or target.is_symlink():
        raise ConvertError(f"{target} exists: choose another target, or remove it")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConvertError(f"{target}: cannot write to {parent}")
    free = shutil.disk_usage(parent).free
    if free < needed + _MARGIN:
        raise ConvertError(
            f"{target}: not enough room on its disk: {gigabytes(needed + _MARGIN)} are needed, {gigabytes(free)} are "
            "free"
        )


@contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write to. It becomes ``target`` when the context ends, and is removed on an error.

    A ``target`` that ends in ``.nemo`` is a file: the file of that name inside the folder becomes it.

    Raises:
        ConvertError: the disk refuses a write.
    """
    partial = target.with_name(f".{target.name}.partial")
    # Of a process that was killed.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        result = partial / target.name if target.suffix == ".nemo" else partial
        for path in [result, *result.rglob("*")]:
            if path.is_dir():
                sync_folder(path)
            else:
                sync_file(path)
        result.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise ConvertError(f"{target}: {error}; nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def gigabytes(size: int) -> str:
    """``size`` bytes for people, in 10⁹ or 10⁶ bytes."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
