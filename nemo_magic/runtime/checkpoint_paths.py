"""A run's checkpoints as folders: names, which are committed, which are kept. Imports neither torch nor NeMo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

FOLDER, STATE, COMMITTED = "checkpoints", "state.json", "COMMITTED"
SNAPSHOTS = "snapshots"
SFT_WEIGHTS = "weights"
"""Folder of a warm-up that holds its result; ``actors.<role>.restore_from_path`` of what follows."""


def checkpoint_name(step: int) -> str:
    """A checkpoint's folder."""
    return f"step_{step:06d}"


def is_checkpoint(path: Path) -> bool:
    """Whether a folder has a checkpoint's name."""
    return path.name.startswith("step_") and path.name[5:].isdecimal()


def step_of(checkpoint: Path) -> int:
    """How many steps were done, by a checkpoint's name."""
    return int(checkpoint.name[5:])


def partial_path(folder: Path, step: int) -> Path:
    """Where a checkpoint is, while it is being written or removed."""
    return folder / f".{checkpoint_name(step)}.partial"


def committed_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first, without a look inside."""
    paths = [path for path in folder.glob("step_*") if is_checkpoint(path) and (path / COMMITTED).is_file()]
    return sorted(paths, key=step_of, reverse=True)


def best_checkpoint(paths: Sequence[Path], mode: str) -> Path | None:
    """The checkpoint with the best value in its manifest, ``mode`` min or max; of equals the newest; None without."""
    best: tuple[float, Path] | None = None
    for path in paths:
        try:
            value = json.loads((path / COMMITTED).read_text(encoding="utf-8")).get("value")
        except ValueError:  # damaged, and found to be when it is gone on from
            continue
        if value is not None and (best is None or (value < best[0] if mode == "min" else value > best[0])):
            best = value, path
    return None if best is None else best[1]


def prune_checkpoints(folder: Path, keep_last: int, mode: str) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best, to which the link ``best`` then points."""
    paths = committed_checkpoints(folder)
    best = best_checkpoint(paths, mode)
    link = folder / "best"
    link.unlink(missing_ok=True)
    if best is not None:
        link.symlink_to(best.name)
    for path in paths[keep_last:]:
        if path != best:
            _remove(path)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints: the run's result is written elsewhere, and nothing will go on from here any more."""
    (folder / "best").unlink(missing_ok=True)
    for path in reversed(committed_checkpoints(folder)):
        _remove(path)
    shutil.rmtree(folder, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Renamed first: half a folder must not look whole."""
    doomed = partial_path(checkpoint.parent, step_of(checkpoint))
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
