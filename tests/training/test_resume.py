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
from nemo_magic.runtime.resume import Resume, decide, differences, may_differ, start_weights


@pytest.fixture
def cfg(tmp_path: Path) -> MagicConfig:
    return compose("magic_sandbox", [f"exp_manager.explicit_log_dir={tmp_path / 'run'}"])


def checkpoint(cfg: MagicConfig, step: int, sealed: bool = True, command: str = "train") -> Path:
    folder = Path(cfg.exp_manager.explicit_log_dir) / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "command": command, "config": asdict(cfg)}))
    if sealed:
        (folder / "COMMITTED").write_text("{}")
    return folder


def test_a_folder_without_checkpoints_is_a_new_run(cfg: MagicConfig) -> None:
    assert decide(cfg, "auto", "train") == Resume()


def test_the_newest_sealed_checkpoint_is_gone_on_from(cfg: MagicConfig) -> None:
    checkpoint(cfg, 9)
    newest = checkpoint(cfg, 15)
    checkpoint(cfg, 30, sealed=False)
    (newest.parent / "step_000045.damaged").mkdir()
    assert decide(cfg, "auto", "train") == Resume(newest, newest=True)
    assert decide(cfg, "never", "train") == Resume()


def test_steps_are_ordered_as_numbers(cfg: MagicConfig) -> None:
    late = checkpoint(cfg, 1_000_001)
    early = checkpoint(cfg, 999_999)
    assert committed_checkpoints(late.parent) == [late, early]


def test_a_given_checkpoint_is_taken_whatever_its_settings(cfg: MagicConfig) -> None:
    given = checkpoint(cfg, 9)
    assert decide(replace(cfg, seed=5), str(given), "train") == Resume(given)
    with pytest.raises(ConfigError, match="no committed checkpoint there"):
        decide(cfg, str(given / "policies"), "train")


def test_a_link_to_a_checkpoint_is_the_checkpoint_and_a_copy_under_another_name_is_none(cfg: MagicConfig) -> None:
    given = checkpoint(cfg, 9)
    (given.parent / "best").symlink_to(given.name)
    assert decide(cfg, str(given.parent / "best"), "train") == Resume(given)
    given.rename(given.with_name("step_000009-copy"))
    with pytest.raises(ConfigError, match="no committed checkpoint there"):
        decide(cfg, str(given.with_name("step_000009-copy")), "train")


def test_a_given_checkpoint_whose_state_cannot_be_read_is_refused(cfg: MagicConfig) -> None:
    given = checkpoint(cfg, 9)
    (given / "state.json").write_text('{"step": 9, "conf')
    with pytest.raises(ConfigError, match=r"--resume .*step_000009: its state.json cannot be read \(Unterminated"):
        decide(cfg, str(given), "train")


def test_another_game_in_the_same_folder_is_refused_naming_the_keys(cfg: MagicConfig) -> None:
    checkpoint(cfg, 9)
    other = replace(cfg, seed=5, game=replace(cfg.game, group_size=4))
    with pytest.raises(ConfigError) as refused:
        decide(other, "auto", "train")
    assert "game.group_size: 8 before, 4 now" in str(refused.value)
    assert "seed: 1234 before, 5 now" in str(refused.value)
    assert "--resume never" in str(refused.value)


def test_a_checkpoint_of_the_other_command_is_refused(cfg: MagicConfig) -> None:
    given = checkpoint(cfg, 9)
    for source in ("auto", str(given)):
        with pytest.raises(ConfigError, match="step_000009 is of a game, and this is a warm-up: choose another name"):
            decide(cfg, source, "sft")
    assert decide(cfg, "never", "sft") == Resume()


def test_what_a_warm_up_does_not_learn_from_may_differ_and_its_pool_base_and_length_may_not() -> None:
    before = {
        "sft": {"max_steps": 3, "pool": "a", "val_pool": None},
        "game": {"max_steps": 2, "prompts": {"attacker_system": "x"}},
        "actors": {role: {"restore_from_path": "/base"} for role in ("attacker", "defender")},
        "model": {"hidden_size": 8, "micro_batch_size": 1},
    }
    now = {
        "sft": {"max_steps": 9, "pool": "b", "val_pool": "c"},
        "game": {"max_steps": 3, "prompts": {"attacker_system": "y"}},
        "actors": {role: {"restore_from_path": f"/{role}"} for role in ("attacker", "defender")},
        "model": {"hidden_size": 8, "micro_batch_size": 4},
    }
    assert [key for key, *_ in differences(before, now, may_differ("sft", "defender"))] == [
        "actors.defender.restore_from_path", "game.prompts.attacker_system", "sft.max_steps", "sft.pool",
    ]  # fmt: skip
    assert [key for key, *_ in differences(before, now, may_differ("train"))] == ["game.prompts.attacker_system"]


def test_another_role_s_warm_up_is_refused(tmp_path: Path) -> None:
    words = [f"exp_manager.explicit_log_dir={tmp_path / 'run'}"]
    attacker = compose("sft_sandbox_attacker", words, command="sft")
    given = checkpoint(attacker, 5, command="sft")
    assert decide(attacker, "auto", "sft") == Resume(given, newest=True)
    for source in ("auto", str(given)):
        with pytest.raises(ConfigError, match=r"is of sft.role=attacker, and this is sft.role=defender"):
            decide(compose("sft_sandbox_defender", words, command="sft"), source, "sft")


def test_a_checkpoint_from_elsewhere_is_not_laid_over_a_run_s_own(cfg: MagicConfig, tmp_path: Path) -> None:
    own = checkpoint(cfg, 9)
    other = replace(cfg, exp_manager=replace(cfg.exp_manager, explicit_log_dir=str(tmp_path / "other")))
    elsewhere = checkpoint(other, 3)
    assert decide(cfg, str(own), "train") == Resume(own)
    with pytest.raises(ConfigError, match=r"run has checkpoints of its own, up to step_000009: go on from there"):
        decide(cfg, str(elsewhere), "train")


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
    assert decide(other, "auto", "train").newest


def test_a_damaged_state_is_left_to_the_checksums(cfg: MagicConfig) -> None:
    folder = checkpoint(cfg, 9)
    (folder / "state.json").write_text('{"step": 9, "conf')
    assert decide(cfg, "auto", "train") == Resume(folder, newest=True)


def test_a_key_that_came_or_went_is_a_difference() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, may_differ("train"))) == [("a.c", None, 2)]
    assert list(differences({"a": 1, "name": "x"}, {"a": 1, "name": "y"}, may_differ("train"))) == []


def test_a_run_from_before_there_was_a_setting_goes_on_where_it_is_at_its_default(cfg: MagicConfig) -> None:
    folder = checkpoint(cfg, 9)
    state = json.loads((folder / "state.json").read_text())
    for key in ("analysis", "serve"):
        del state["config"][key]
    del state["config"]["game"]["pool"], state["config"]["grpo"]["tis_clip"]
    (folder / "state.json").write_text(json.dumps(state | {"pool": {}}))
    assert decide(cfg, "auto", "train") == Resume(folder, newest=True)
    with pytest.raises(ConfigError, match=r"grpo.tis_clip: None before, 2.0 now"):
        decide(replace(cfg, grpo=replace(cfg.grpo, tis_clip=2.0)), "auto", "train")


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
