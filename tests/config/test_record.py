"""What is saved with a run."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest
import yaml

from nemo_magic.config import compose, save_resolved
from nemo_magic.config.save_resolved import git_state


def commit(folder: Path, message: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(folder), *who, "commit", "-q", "-m", message], check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "file").write_text("1")
    commit(tmp_path, "first")
    return tmp_path


@pytest.mark.process
def test_a_run_keeps_its_resolved_configuration_and_the_versions_it_ran_with(tmp_path: Path) -> None:
    cfg = compose("magic_sandbox", ["seed=77"])
    save_resolved(cfg, tmp_path / "run")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["seed"] == 77
    assert saved["model"]["tokenizer"]["type"] == "runs/sandbox/tokenizer"  # resolved
    assert saved["grpo"]["ratio_clip_low"] == 0.2  # defaults too
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["python"] == platform.python_version()
    assert "hydra-core" in versions["packages"]
    assert "git" in versions
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "versions.json"]


@pytest.mark.process
def test_the_revision_says_whether_the_tree_is_dirty(checkout: Path) -> None:
    clean = git_state(checkout)
    assert clean is not None
    assert len(clean["revision"]) == 40
    assert clean["dirty"] is False
    (checkout / "file").write_text("2")
    assert git_state(checkout) == {"revision": clean["revision"], "dirty": True}


@pytest.mark.process
def test_the_repository_around_an_installed_package_is_not_its_revision(checkout: Path) -> None:
    inside = checkout / "venv" / "site-packages"
    inside.mkdir(parents=True)
    assert git_state(inside) is None


@pytest.mark.process
def test_a_checkout_without_a_commit_has_no_revision(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert git_state(tmp_path) == {"revision": None, "dirty": False}
