"""Whether a run begins or goes on: decided from files alone."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_magic.config import ConfigError, MagicConfig, compose
from nemo_magic.runtime.checkpoint_paths import committed_checkpoints
from nemo_magic.runtime.preemption import Preemption
from nemo_magic.runtime.resume import Resume, decide, differences, start_weights


@pytest.fixture
def cfg(tmp_path: Path) -> MagicConfig:
    return compose("magic_sandbox", [f"exp_manager.explicit_log_dir={tmp_path / 'run'}"])


def checkpoint(cfg: MagicConfig, step: int, sealed: bool = True) -> Path:
    folder = Path(cfg.exp_manager.explicit_log_dir) / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "config": asdict(cfg)}))
    if sealed:
        (folder / "COMMITTED").write_text("{}")
    return folder


def test_a_folder_without_checkpoints_is_a_new_run(cfg: MagicConfig) -> None:
    assert decide(cfg, "auto") == Resume()


def test_the_newest_sealed_checkpoint_is_gone_on_from(cfg: MagicConfig) -> None:
    checkpoint(cfg, 9)
    newest = checkpoint(cfg, 15)
    checkpoint(cfg, 30, sealed=False)
    (newest.parent / "step_000045.damaged").mkdir()
    assert decide(cfg, "auto") == Resume(newest, newest=True)
    assert decide(cfg, "never") == Resume()


def test_steps_are_ordered_as_numbers(cfg: MagicConfig) -> None:
    late = checkpoint(cfg, 1_000_001)
    early = checkpoint(cfg, 999_999)
    assert committed_checkpoints(late.parent) == [late, early]


def test_a_given_checkpoint_is_taken_whatever_its_settings(cfg: MagicConfig) -> None:
    given = checkpoint(cfg, 9)
    assert decide(replace(cfg, seed=5), str(given)) == Resume(given)
    with pytest.raises(ConfigError, match="no committed checkpoint there"):
        decide(cfg, str(given / "policies"))


def test_a_given_checkpoint_whose_state_cannot_be_read_is_refused(cfg: MagicConfig) -> None:
    given = checkpoint(cfg, 9)
    (given / "state.json").write_text('{"step": 9, "conf')
    with pytest.raises(ConfigError, match=r"--resume .*step_000009: its state.json cannot be read \(Unterminated"):
        decide(cfg, str(given))


def test_another_game_in_the_same_folder_is_refused_naming_the_keys(cfg: MagicConfig) -> None:
    checkpoint(cfg, 9)
    other = replace(cfg, seed=5, game=replace(cfg.game, group_size=4))
    with pytest.raises(ConfigError) as refused:
        decide(other, "auto")
    assert "game.group_size: 8 before, 4 now" in str(refused.value)
    assert "seed: 1234 before, 5 now" in str(refused.value)
    assert "--resume never" in str(refused.value)


def test_layout_length_and_judge_may_change(cfg: MagicConfig) -> None:
    checkpoint(cfg, 9)
    model = replace(cfg.model, tensor_model_parallel_size=2, micro_batch_size=4)
    other = replace(
        cfg,
        model=model,
        game=replace(cfg.game, max_steps=300),
        trainer=replace(cfg.trainer, devices=4),
        judge=replace(cfg.judge, launch=False, urls=["http://elsewhere"]),
    )
    assert decide(other, "auto").newest


def test_a_damaged_state_is_left_to_the_checksums(cfg: MagicConfig) -> None:
    folder = checkpoint(cfg, 9)
    (folder / "state.json").write_text('{"step": 9, "conf')
    assert decide(cfg, "auto") == Resume(folder, newest=True)


def test_a_key_that_came_or_went_is_a_difference() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}})) == [("a.c", None, 2)]
    assert list(differences({"a": 1, "name": "x"}, {"a": 1, "name": "y"})) == []


def test_a_run_from_before_there_was_a_setting_goes_on_where_it_is_at_its_default(cfg: MagicConfig) -> None:
    folder = checkpoint(cfg, 9)
    state = json.loads((folder / "state.json").read_text())
    for key in ("analysis", "serve"):
        del state["config"][key]
    del state["config"]["game"]["pool"], state["config"]["grpo"]["tis_clip"]
    (folder / "state.json").write_text(json.dumps(state | {"pool": {}}))
    assert decide(cfg, "auto") == Resume(folder, newest=True)
    with pytest.raises(ConfigError, match=r"grpo.tis_clip: None before, 2.0 now"):
        decide(replace(cfg, grpo=replace(cfg.grpo, tis_clip=2.0)), "auto")


def test_a_resumed_run_begins_with_the_weights_it_began_with(cfg: MagicConfig) -> None:
    folder = checkpoint(cfg, 9)
    start = folder.parent.parent / "snapshots" / "defender" / "start"
    start.mkdir(parents=True)
    assert start_weights(cfg, folder) == {}
    (start / "metadata.json").write_text("{}")
    assert start_weights(cfg, folder) == {"defender": start}
    assert start_weights(cfg, None) == {}


def alone() -> Any:
    return SimpleNamespace(all_gather=lambda value: [value])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_until_it_is_asked_for(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Preemption(alone(), None) as preemption:
        assert preemption.reason() is None
        os.kill(os.getpid(), number)
        assert preemption.reason() == f"{number.name} received"
    assert signal.getsignal(number) == before


def test_a_signal_to_one_rank_ends_all() -> None:
    world: Any = SimpleNamespace(all_gather=lambda value: [value, int(signal.SIGUSR1)])
    with Preemption(world, None) as preemption:
        assert preemption.reason() == "SIGUSR1 received"


def test_the_time_of_a_run_is_counted_from_its_beginning() -> None:
    now = [100.0]
    preemption = Preemption(alone(), 60.0, clock=lambda: now[0])
    assert preemption.reason() is None
    now[0] = 160.0
    assert preemption.reason() == "exp_manager.max_time_per_run is over"


def test_max_time_per_run_is_days_hours_minutes_seconds() -> None:
    cfg = compose("magic_sandbox", ["exp_manager.max_time_per_run='01:02:03:04'"])
    assert cfg.exp_manager.max_seconds == ((24 + 2) * 60 + 3) * 60 + 4
