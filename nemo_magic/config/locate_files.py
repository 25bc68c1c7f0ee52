"""Finds the user's copies of benchmarks in one folder, by the usual names of the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from nemo_magic.config.eval_config import EvalConfig
from nemo_magic.data.catalogue import BENCHMARKS
from nemo_magic.data.errors import DataError

_MAX_NAMED = 5
_SUPERSEDED = ("previous_versions",)
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")


def usual_names(benchmark: str) -> tuple[str, ...]:
    """The names that a benchmark's file is known by, in lower case, as shell patterns of the end of its path: those it
    is published under, and its own name here."""
    return (*BENCHMARKS[benchmark].files, *(f"{benchmark}.{ending}" for ending in FORMATS))


def with_files(cfg: EvalConfig) -> EvalConfig:
    """The same with a file for every task that names none and has one below ``eval.folder``.

    Raises:
        DataError: there is no such folder, or a task could mean several files.
    """
    if cfg.folder is None:
        return cfg
    folder = Path(cfg.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"eval.folder={cfg.folder}: no such folder")
    paths = sorted(_files_below(folder))
    tasks = {}
    for name, task in cfg.tasks.items():
        if task.file is None and cfg.benchmark_name(name) in BENCHMARKS:
            matches = _distinct(folder, _matching(paths, usual_names(cfg.benchmark_name(name))))
            if len(matches) > 1:
                more = [f"{len(matches) - _MAX_NAMED} more"] if len(matches) > _MAX_NAMED else []
                raise DataError(
                    f"eval.folder={cfg.folder}: {len(matches)} files could be {name}: "
                    f"{', '.join([*matches[:_MAX_NAMED], *more])}; name the right one, "
                    f"eval.tasks.{name}.file={folder / matches[0]}"
                )
            tasks[name] = replace(task, file=str(folder / matches[0])) if matches else task
        else:
            tasks[name] = task
    return replace(cfg, tasks=tasks)


def why_not_measured(cfg: EvalConfig, task: str) -> str:
    """Why a task without a file is not measured, in words."""
    absent = f"not measured, eval.tasks.{task}.file is null"
    if cfg.folder is None or cfg.benchmark_name(task) not in BENCHMARKS:
        return absent
    return f"{absent} and no file below eval.folder={cfg.folder} is called {' or '.join(_describe_names(cfg, task))}"


def _describe_names(cfg: EvalConfig, task: str) -> list[str]:
    name = cfg.benchmark_name(task)
    return [*BENCHMARKS[name].files, f"{name}.csv (or {', '.join(FORMATS[1:])})"]


def _distinct(folder: Path, paths: Sequence[str]) -> list[str]:
    """One path of each content: equal copies are one file, of which the one with the most files beside it is taken, as
    a benchmark in two halves has."""
    if len(paths) < 2:
        return list(paths)
    copies: dict[str, list[str]] = {}
    for path in paths:
        copies.setdefault(hashlib.blake2b((folder / path).read_bytes()).hexdigest(), []).append(path)
    return [max(same, key=lambda path: len(list((folder / path).parent.iterdir()))) for same in copies.values()]


def _files_below(folder: Path) -> Iterator[str]:
    """Paths of files relative to ``folder``; hidden folders are left out, and those of superseded versions."""
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in _SUPERSEDED]
        yield from (Path(above, name).relative_to(folder).as_posix() for name in files)


def _matching(paths: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [path for path in paths if any(fnmatchcase(f"/{path.lower()}", f"*/{pattern}") for pattern in patterns)]
