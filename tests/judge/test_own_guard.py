"""A guard of one's own is found beside its configuration and in the working directory, also by the server of a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from nemo_magic.cli import main
from nemo_magic.config import ConfigError, compose
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.guards import build_guard, is_own, search_modules
from nemo_magic.judge.local import launch_local

GUARD = """
from {name}_words import NAME
from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.guards.base import ComputedGuard, Opinion

class Kind(ComputedGuard):
    name, revision = NAME, "1"

    def __init__(self, world=None):
        pass

    def opinion(self, item):
        return Opinion("", Safety.SAFE, Safety.SAFE, Answer.NO, Answer.YES, Answer.YES)
"""
CONFIG = "defaults: [magic_sandbox, _self_]\nname: mine\njudge: {{guard: {name}:Kind}}\n"


def put(folder: Path, name: str) -> None:
    """Two modules: a guard, and one that it imports."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(GUARD.format(name=name))
    (folder / f"{name}_words.py").write_text("NAME = 'kind'\n")
    (folder / "mine.yaml").write_text(CONFIG.format(name=name))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without modules; where Python looks is as before after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_it_is_found_in_the_folder_of_the_configuration_after_installed_modules(tmp_path: Path) -> None:
    put(tmp_path / "conf", "guard_beside")
    before = list(sys.path)
    cfg = compose("mine", [], str(tmp_path / "conf"), "train")
    assert build_guard(cfg.judge.guard, cfg.judge.guard_config).name == "kind"
    assert sys.path == [*before, str(tmp_path / "conf"), str(tmp_path / "elsewhere")]
    search_modules([tmp_path / "conf"])
    assert len(sys.path) == len(before) + 2


def test_it_is_found_in_the_working_directory(elsewhere: Path) -> None:
    put(elsewhere, "guard_here")
    cfg = compose("magic_sandbox", ["judge.guard=guard_here:Kind"])
    assert build_guard(cfg.judge.guard, {}).name == "kind"


def test_other_configurations_do_not_change_where_python_looks(tmp_path: Path) -> None:
    put(tmp_path / "conf", "unused")
    before = list(sys.path)
    compose("mine", ["judge.guard=rules"], str(tmp_path / "conf"))
    assert sys.path == before
    assert not is_own("rules", {"world": "a:b"})
    assert not is_own("ensemble", {"guards": {"qwen3guard": {}, "rubric": {"guard": "rubric"}}})
    assert is_own("ensemble", {"guards": {"qwen3guard": {}, "mine": {"guard": "module:Class"}}})


def test_where_was_looked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "conf", "guard_moved")
    (tmp_path / "conf" / "guard_moved.py").rename(tmp_path / "guard_moved.py")
    with pytest.raises(ConfigError, match=r"guard='guard_moved:Kind': there is no module guard_moved in ") as refused:
        compose("mine", [], str(tmp_path / "conf"))
    assert str(tmp_path / "conf") in str(refused.value)
    assert str(tmp_path / "elsewhere") in str(refused.value)
    assert main(["judge", "-cd", str(tmp_path / "conf"), "-cn", "mine"]) == 2
    assert str(tmp_path / "conf") in capsys.readouterr().err


def test_what_is_wrong_with_the_module_is_said(tmp_path: Path) -> None:
    put(tmp_path / "conf", "guard_odd")
    with pytest.raises(ConfigError, match=r"conf/guard_odd\.py has no Cruel"):
        compose("mine", ["judge.guard=guard_odd:Cruel"], str(tmp_path / "conf"))
    (tmp_path / "conf" / "guard_alone.py").write_text("import no_such_module_there\n")
    with pytest.raises(ConfigError, match="guard_alone cannot be imported: No module named 'no_such_module_there'"):
        compose("mine", ["judge.guard=guard_alone:Kind"], str(tmp_path / "conf"))


@pytest.mark.process
def test_the_server_of_a_run_finds_it_where_the_run_does(tmp_path: Path, quick: JudgeConfig) -> None:
    put(tmp_path / "conf", "guard_served")
    search_modules([tmp_path / "conf"])
    with launch_local(replace(quick, guard="guard_served:Kind")) as local:
        assert httpx.get(f"{local.url}/readyz", trust_env=False).json()["guard"] == "kind@1"
