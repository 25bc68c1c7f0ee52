"""A run's folder: what is set aside for a new run, and whose results are never described by another configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_magic.commands.run_folder import describe_run, refuse_results, set_aside
from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.runtime.errors import CheckpointError
from nemo_magic.runtime.resume import Resume
from nemo_magic.training.state import GameState


def configured(folder: Path) -> MagicConfig:
    cfg = MagicConfig()
    return replace(cfg, exp_manager=replace(cfg.exp_manager, explicit_log_dir=str(folder)))


def test_a_new_run_sets_the_previous_one_aside_with_its_configuration(tmp_path: Path) -> None:
    outputs = {"metrics.jsonl", "checkpoints", "snapshots", "attacks", "cross-play", "config.yaml", "versions.json"}
    for number in (1, 2):
        for name in outputs:
            (tmp_path / name).write_text(f"{name} of run {number}")
        (tmp_path / "owner-0001.json").touch()
        assert set_aside(tmp_path) == (aside := tmp_path / f"previous-{number:02d}")
        assert {path.name for path in aside.iterdir()} == outputs
        assert all((aside / name).read_text() == f"{name} of run {number}" for name in outputs)
    assert {path.name for path in tmp_path.iterdir()} == {"owner-0001.json", "previous-01", "previous-02"}


def test_a_run_that_was_refused_before_it_wrote_anything_leaves_nothing_to_set_aside(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert set_aside(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.process  # asks git and uname for the versions
def test_only_a_run_that_begins_sets_aside(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("kept")
    described = {"metrics.jsonl", "config.yaml", "versions.json"}
    describe_run(configured(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == described
    describe_run(configured(tmp_path), Resume())
    assert {path.name for path in tmp_path.iterdir()} == {"previous-01", "config.yaml", "versions.json"}
    assert {path.name for path in (tmp_path / "previous-01").iterdir()} == described


def kept(folder: Path, step: int, **snapshots: list[str]) -> Path:
    """A committed checkpoint that names snapshots, which are there."""
    path = folder / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "COMMITTED").touch()
    (path / "state.json").write_text(json.dumps({"snapshots": snapshots}))
    for owner, names in snapshots.items():
        for name in names:
            (folder / "snapshots" / owner / name).mkdir(parents=True, exist_ok=True)
            (folder / "snapshots" / owner / name / "weights").write_text(f"{owner} {name}")
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


@pytest.mark.process  # asks git and uname for the versions
def test_a_run_that_goes_back_sets_aside_what_came_later(tmp_path: Path) -> None:
    early, late = kept(tmp_path, 15, defender=["start"]), kept(tmp_path, 30, defender=["start", "phase-00"])
    (tmp_path / "checkpoints" / "best").symlink_to(late.name)
    (tmp_path / "metrics.jsonl").write_text("rows")
    (tmp_path / "crossplay.json").write_text("{}")
    before = files(tmp_path)
    describe_run(configured(tmp_path), Resume(late, newest=True))
    assert files(tmp_path) == before | {"config.yaml", "versions.json"}
    describe_run(configured(tmp_path), Resume(early))
    aside = {name for name in files(tmp_path) if name.startswith("previous-01/")}
    assert files(tmp_path) - aside == {
        "config.yaml", "versions.json", "metrics.jsonl", "snapshots/defender/start/weights",
        "checkpoints/step_000015/COMMITTED", "checkpoints/step_000015/state.json",
    }  # fmt: skip
    assert aside == {
        "previous-01/metrics.jsonl", "previous-01/crossplay.json", "previous-01/snapshots/defender/phase-00/weights",
        "previous-01/checkpoints/step_000030/COMMITTED", "previous-01/checkpoints/step_000030/state.json",
    }  # fmt: skip


@pytest.mark.process  # asks git and uname for the versions
@pytest.mark.parametrize("links", [True, False])
def test_a_run_that_goes_on_from_another_one_has_its_snapshots(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    other = kept(tmp_path / "other", 15, attacker=["start"], defender=["start", "phase-00"])
    kept(tmp_path / "other", 30, defender=["phase-02"])
    mine = tmp_path / "mine"
    describe_run(configured(mine), Resume(other))
    assert files(mine / "snapshots") == {
        f"{name}/weights" for name in ("attacker/start", "defender/start", "defender/phase-00")
    }
    assert (mine / "snapshots/defender/phase-00/weights").read_text() == "defender phase-00"
    assert len(files(tmp_path / "other")) == 8


@pytest.mark.parametrize("goes_on_with", ["checkpoints", "results.json"])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("weights", "the results of a warm-up"),
        ("checkpoints", "a run's checkpoints"),
        ("results.json", "the results of an evaluation"),
    ],
)
def test_other_results_are_refused(tmp_path: Path, goes_on_with: str, name: str, what: str) -> None:
    (tmp_path / name).mkdir()
    if goes_on_with == name:
        refuse_results(configured(tmp_path), goes_on_with)
        return
    with pytest.raises(ConfigError, match=rf"already holds {what} \({name}\): choose another name"):
        refuse_results(configured(tmp_path), goes_on_with)


@pytest.mark.process  # NeMo starts one as it is imported
def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    checkpoints: Any = SimpleNamespace(folder=tmp_path, restore=lambda path, trainable: {"step": 3})
    pair: Any = SimpleNamespace(unique={"defender": None})
    prefetcher: Any = None
    with pytest.raises(CheckpointError, match=r"state.json has no 'skipped_updates': another version .*--resume never"):
        GameState.load(tmp_path, checkpoints, pair, prefetcher)
