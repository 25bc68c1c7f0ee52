"""The user's copies of benchmarks, found in one folder by the names that the files usually have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from nemo_magic.config.eval_config import EvalConfig
from nemo_magic.data.catalogue import BENCHMARKS
from nemo_magic.data.errors import DataError

_SHOWN = 5
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
    there = sorted(_below(folder))
    tasks = {}
    for name, task in cfg.tasks.items():
        if task.file is None and cfg.benchmark_name(name) in BENCHMARKS:
            found = _candidates(there, usual_names(cfg.benchmark_name(name)))
            if len(found) > 1:
                shown = [*found[:_SHOWN], *([f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])]
                raise DataError(
                    f"eval.folder={cfg.folder}: {len(found)} files could be {name}: {', '.join(shown)}; name the right "
                    f"one, eval.tasks.{name}.file={folder / found[0]}"
                )
            tasks[name] = replace(task, file=str(folder / found[0])) if found else task
        else:
            tasks[name] = task
    return replace(cfg, tasks=tasks)


def why_not(cfg: EvalConfig, task: str) -> str:
    """Why a task without a file is not measured, in words."""
    absent = f"not measured, eval.tasks.{task}.file is null"
    if cfg.folder is None or cfg.benchmark_name(task) not in BENCHMARKS:
        return absent
    return f"{absent} and no file below eval.folder={cfg.folder} is called {' or '.join(_shown(cfg, task))}"


def _shown(cfg: EvalConfig, task: str) -> list[str]:
    name = cfg.benchmark_name(task)
    return [*BENCHMARKS[name].files, f"{name}.csv (or {', '.join(FORMATS[1:])})"]


def _below(folder: Path) -> Iterator[str]:
    """Paths of files relative to ``folder``; hidden folders are left out."""
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(above, name).relative_to(folder).as_posix() for name in files)


def _candidates(there: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [path for path in there if any(fnmatchcase(f"/{path.lower()}", f"*/{pattern}") for pattern in patterns)]
