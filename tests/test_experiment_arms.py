"""What the experiment finds of a run on disk; playing and measuring are for a run of its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    return importlib.import_module("arms")


def keep(run: Path, player: str, *names: str) -> None:
    for name in names:
        folder = run / "snapshots" / player / name
        folder.mkdir(parents=True)
        (folder / "metadata.json").touch()


def test_selves_are_in_the_order_of_the_game_and_the_last_is_the_last_by_number(
    arms: ModuleType, tmp_path: Path
) -> None:
    keep(tmp_path, "defender", "start", "phase-99", "phase-100", "phase-04")
    (tmp_path / "snapshots" / "defender" / "phase-101").mkdir()  # was being written when the run was killed
    assert [path.name for path in arms.kept(tmp_path, "defender")] == ["phase-04", "phase-99", "phase-100"]
    assert arms.last_defender(tmp_path).name == "phase-100"


def test_the_one_model_of_self_play_is_its_last_defender(arms: ModuleType, tmp_path: Path) -> None:
    keep(tmp_path, "shared", "start", "phase-00")
    assert arms.last_defender(tmp_path) == tmp_path / "snapshots" / "shared" / "phase-00"


def test_a_run_that_kept_no_defender_is_named(arms: ModuleType, tmp_path: Path) -> None:
    keep(tmp_path, "defender", "start")
    with pytest.raises(ValueError, match="holds no defender of a finished phase"):
        arms.last_defender(tmp_path)


def test_what_was_played_or_met_is_not_played_again(
    arms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(arms, "program", lambda *words: told.append(words))
    run, other = arms.Run("latest", 1, tmp_path), arms.Run("pfsp", 1, tmp_path)
    keep(other.folder, "attacker", "start", "phase-01")
    run.folder.mkdir(parents=True)
    (run.folder / "game.png").touch()
    arms.play(run)
    assert not told
    (run.folder / "cross-play").mkdir()
    (run.folder / "cross-play" / "league.json").write_text('{"attackers": ["start", "pfsp-1/phase-01"]}')
    arms.league(run, [other])
    assert not told
    keep(other.folder, "attacker", "phase-03")
    arms.league(run, [other])
    assert told[0][:2] == ("cross-play", str(run.folder))
    assert f"pfsp-1/phase-03={other.folder}/snapshots/attacker/phase-03" in told[0]


def test_an_arm_of_its_own_warm_up_is_warmed_up_once(
    arms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []

    def program(*words: str) -> None:
        told.append(words)
        folder = Path(
            next(word.partition("=")[2] for word in words if word.startswith("exp_manager.explicit_log_dir="))
        )
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "metadata.json").touch()

    monkeypatch.setattr(arms, "program", program)
    for arm in ("robust_warmed", "paper_warmed"):
        arms.play(arms.Run(arm, 7, tmp_path))
    assert [words[0] for words in told] == ["sft", "sft", "train", "train"]
    assert all("seed=7" in words for words in told)
    for words in told[2:]:
        assert f"actors.defender.restore_from_path={tmp_path}/sft-defender-7/weights" in words
    assert "game=paper" in told[3]


def test_all_arms_at_a_seed_come_before_the_next_seed(arms: ModuleType, tmp_path: Path) -> None:
    planned = importlib.import_module("experiments").plan(["robust", "pfsp"], None, tmp_path)
    assert [run.name for run in planned] == [
        "robust-1", "pfsp-1", "robust-2", "pfsp-2", "robust-3", "pfsp-3", "pfsp-4", "pfsp-5",
    ]  # fmt: skip
    assert [run.seed for run in importlib.import_module("experiments").plan(["paper"], [1234], tmp_path)] == [1234]


@pytest.mark.slow
def test_every_arm_is_a_game_that_can_be_played(arms: ModuleType) -> None:
    config = importlib.import_module("nemo_magic.config")
    for arm in arms.EVERY.values():
        cfg = config.compose("magic_sandbox", [*arms.SHARED, *arm.words])
        assert cfg.game.max_steps == 75
