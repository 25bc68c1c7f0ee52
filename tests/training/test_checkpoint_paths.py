from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_magic.runtime.checkpoint_paths import (
    best_checkpoint,
    committed_checkpoints,
    prune_checkpoints,
    remove_checkpoints,
)


def checkpoint(folder: Path, step: int, value: float | None = None) -> Path:
    path = folder / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "COMMITTED").write_text(json.dumps({"step": step, "value": value}))
    return path


def test_the_last_ones_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, keep_last=2, mode="min")
    assert [path.name for path in committed_checkpoints(tmp_path)] == ["step_000015", "step_000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000010", "step_000015"]


@pytest.mark.parametrize(("mode", "best"), [("min", 10), ("max", 5)])
def test_the_best_one_stays_too_and_can_be_found_by_its_link(tmp_path: Path, mode: str, best: int) -> None:
    for step, value in ((5, 0.9), (10, 0.1), (15, 0.5), (20, None), (25, 0.3)):
        checkpoint(tmp_path, step, value)
    prune_checkpoints(tmp_path, keep_last=1, mode=mode)
    assert [int(path.name[5:]) for path in committed_checkpoints(tmp_path)] == [25, best]
    assert (tmp_path / "best").resolve().name == f"step_{best:06d}"


def test_a_damaged_one_is_not_the_best_and_ends_nothing(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 5, 0.1) / "COMMITTED").write_text("")
    checkpoint(tmp_path, 10, 0.5)
    checkpoint(tmp_path, 15, 0.7)
    prune_checkpoints(tmp_path, keep_last=2, mode="min")
    assert (tmp_path / "best").resolve().name == "step_000010"


def test_all_go_once_the_result_is_written(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint(tmp_path / "checkpoints", step)
    (tmp_path / "checkpoints" / "best").symlink_to("step_000005")
    remove_checkpoints(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
    remove_checkpoints(tmp_path / "checkpoints")


def test_of_equals_the_newest_is_the_best(tmp_path: Path) -> None:
    newest = [checkpoint(tmp_path, step, 0.0) for step in (5, 10)][-1]
    assert best_checkpoint(committed_checkpoints(tmp_path), "min") == newest


def test_without_values_there_is_no_best(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    prune_checkpoints(tmp_path, keep_last=1, mode="min")
    assert not (tmp_path / "best").is_symlink()
