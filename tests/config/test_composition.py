"""What a user may write, and what is answered to what cannot be meant."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_magic.config import ConfigError, MagicConfig, compose, conf_dir, optimizer_steps, role_model
from nemo_magic.config.keys import RENAMED_KEYS, is_known
from nemo_magic.rl.config import GRPOConfig

PRIMARY = sorted(path.stem for path in conf_dir().glob("*.yaml"))
REAL = [
    "data.train_files=[/seeds.jsonl]",
    "judge.urls=[http://judge:8000]",
    "actors.attacker.restore_from_path=/attacker.nemo",
    "actors.defender.restore_from_path=/defender.nemo",
]
_MODEL = ("model.urls=[http://gpu:8000/v1]", "model.model=some")
GUARD = [f"judge.guard_config.{key}" for key in _MODEL]
GUARDS = [f"judge.guard_config.guards.{member}.{key}" for member in ("qwen3guard", "rubric") for key in _MODEL]


def _given(guard: str) -> list[str]:
    """What a judge with a model behind it has to be told."""
    return [] if guard in ("rules", "remote") else GUARDS if guard == "ensemble" else GUARD


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIMARY)
def test_every_primary_configuration_composes(name: str) -> None:
    command = next((command for command in ("sft", "judge") if name.startswith(f"{command}_")), "train")
    real = command == "train" and "sandbox" not in name
    given = _given(name.removeprefix("judge_")) if command == "judge" else REAL if real else []
    cfg = compose(name, given, command=command)
    assert isinstance(cfg, MagicConfig)
    assert cfg.name == name
    assert cfg.exp_manager.explicit_log_dir == f"runs/{name}"


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), [(path.parent.name, path.stem) for path in conf_dir().glob("*/*.yaml")])
def test_every_group_file_has_known_keys_only(group: str, choice: str) -> None:
    # What a model or a cluster makes impossible is another matter: types and keys are checked for any command.
    if group in ("suite", "capability"):
        compose("eval_paper", [f"{group}={choice}"], command="capability")
        return
    overrides = [f"{group}={choice}"] + (["judge.urls=[]"] if choice == "remote" else [])
    overrides += _given(choice) if group == "judge" else []
    compose("magic_sandbox", overrides + (["data.train_files=[]"] if choice == "files" else []), command="judge")


def test_an_override_reaches_the_typed_configuration() -> None:
    cfg = compose("magic_sandbox", ["game.schedule.freq=5", "trainer.precision=32", "judge.server.port=8001"])
    assert cfg.game.schedule.freq == 5
    assert cfg.trainer.precision == "32"
    assert cfg.judge.server.port == 8001


def test_a_group_override_takes_the_other_file_and_keeps_the_rest() -> None:
    robust, paper = compose("magic_sandbox"), compose("magic_sandbox", ["game=paper"])
    assert (robust.rewards.help, robust.rewards.intent_gate) == (0.5, True)
    assert (paper.rewards.help, paper.rewards.intent_gate) == (0.0, False)
    assert paper.rewards.format == 0.5
    assert (robust.game.raw_prompt_fraction, paper.game.raw_prompt_fraction) == (0.25, 0.0)
    assert replace(robust.game, raw_prompt_fraction=0.0) == paper.game


def test_the_reference_preset_restores_the_published_code() -> None:
    cfg = compose("magic_sandbox", ["game=reference"])
    rewards, grpo = cfg.rewards, cfg.grpo
    assert (rewards.format, rewards.refusal_label, rewards.help) == (1.0, "prompt", 0.0)
    assert (rewards.unfinished, rewards.format_empty_answer) == ("zero", True)
    assert (grpo.minibatches, grpo.dual_clip, grpo.max_log_ratio) == (2, 3.0, 3.0)
    assert (grpo.std, grpo.no_spread, grpo.aggregation) == ("sample", "keep", "microbatch")
    assert (grpo.kl_beta, grpo.entropy_bonus, grpo.tis_clip) == (0.0, 0.0, None)


def test_the_paper_preset_has_the_objective_of_the_defaults() -> None:
    assert compose("magic_sandbox", ["game=paper"]).grpo == GRPOConfig()


def test_a_key_that_no_file_mentions_needs_no_plus() -> None:
    overrides = ["grpo.ratio_clip_high=0.28", "actors.defender.model.optim.betas=[0.8,0.9]", "+judge.give_up_after=5"]
    cfg = compose("magic_sandbox", overrides)
    assert cfg.grpo.ratio_clip_high == 0.28
    assert role_model(cfg, "defender").optim.betas == [0.8, 0.9]
    assert cfg.judge.give_up_after == 5


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_a_misspelt_override_fails_and_names_the_nearest_key(prefix: str) -> None:
    override = "~game.schedule.frq" if prefix == "~" else f"{prefix}game.schedule.frq=5"
    with pytest.raises(ConfigError, match=r"unknown key game\.schedule\.frq; did you mean game\.schedule\.freq\?"):
        compose("magic_sandbox", [override])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("game.schedul.freq", "game.schedule.freq"),
        ("freq", "game.schedule.freq"),
        ("game.freq", "game.schedule.freq"),
        ("model.num_layer", "model.num_layers"),
        ("actors.defender.model.num_layer", "actors.defender.model.num_layers"),
        ("exp_manager.wandb_logger_kwargs.projekt", "exp_manager.wandb_logger_kwargs.project"),
        # Where NeMo-Aligner's own configurations have it
        ("trainer.ppo.max_steps", "game.max_steps"),
        ("model.ppo.length_params.max_length", "actors.<role>.length_params.max_length"),
        ("pretrained_checkpoint.restore_from_path", "actors.<role>.restore_from_path"),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(written: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("magic_sandbox", [f"{written}=1"])
    assert str(caught.value) == f"unknown key {written}; did you mean {meant}?"


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(old, new) for old, new in RENAMED_KEYS.items() if "." in new])
def test_a_renamed_key_is_refused_with_its_new_name_on_the_command_line_and_in_a_file(
    old: str, new: str, tmp_path: Path
) -> None:
    message = f"unknown key {old}; did you mean {new}?"
    with pytest.raises(ConfigError) as caught:
        compose("magic_sandbox", [f"{old}=1"])
    assert str(caught.value) == message
    OmegaConf.save(OmegaConf.from_dotlist([f"{old}=1"]), tmp_path / "below.yaml")
    (tmp_path / "mine.yaml").write_text("defaults: [magic_sandbox, below, _self_]\n")
    with pytest.raises(ConfigError) as caught:
        compose("mine", config_dir=str(tmp_path))
    assert message in str(caught.value)


def test_the_new_name_of_a_key_is_a_key() -> None:
    for new in RENAMED_KEYS.values():
        for key in new.replace("<role>", "attacker").split(" and "):
            assert is_known(key)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["game.early_stop.metric", "game.schedule.metric.name", "exp_manager.checkpoint_callback_params.monitor"]
)
def test_a_renamed_metric_is_refused_with_its_new_name_on_the_command_line_and_in_a_file(
    key: str, tmp_path: Path
) -> None:
    old, new = "train_optim/surprise", "train_optim/neg_logprob_minus_entropy"
    message = f"{key}={old}: unknown metric; did you mean {new}?"
    bound = ["game.early_stop.below=1"] if key == "game.early_stop.metric" else []
    with pytest.raises(ConfigError) as caught:
        compose("magic_sandbox", [f"{key}={old}", *bound])
    assert str(caught.value) == message
    OmegaConf.save(OmegaConf.from_dotlist([f"{key}={old}", *bound]), tmp_path / "below.yaml")
    (tmp_path / "mine.yaml").write_text("defaults: [magic_sandbox, below, _self_]\nname: mine\n")
    with pytest.raises(ConfigError) as caught:
        compose("mine", config_dir=str(tmp_path))
    assert str(caught.value) == message
    compose("magic_sandbox", [f"{key}={new}", *bound])


def test_a_free_mapping_takes_any_key() -> None:
    assert compose("magic_sandbox", ["judge.guard_config.anything=1"]).judge.guard_config["anything"] == 1


def test_misspelt_keys_of_a_file_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [magic_sandbox, _self_]\ngame: {schedule: {frq: 3}}\nactors: {attacker: {model: {optim: {rl: 1}}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        compose("mine", config_dir=str(tmp_path))
    assert "unknown key game.schedule.frq; did you mean game.schedule.freq?" in str(caught.value)
    assert "unknown key actors.attacker.model.optim.rl; did you mean actors.attacker.model.optim.lr?" in str(
        caught.value
    )


def test_a_folder_of_the_users_own_is_searched_first_and_adds_to_groups(tmp_path: Path) -> None:
    (tmp_path / "game").mkdir()
    (tmp_path / "game" / "mine.yaml").write_text("# @package _global_\ndefaults: [robust]\nrewards: {help: 0.25}\n")
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "cpu.yaml").write_text("# @package _global_\ntrainer: {accelerator: cpu, devices: 4}\n")
    (tmp_path / "own.yaml").write_text(
        "defaults:\n  - magic_sandbox\n  - override game: mine\n  - _self_\nname: own\ngame: {max_steps: 7}\n"
    )
    cfg = compose("own", ["game.schedule.freq=2"], str(tmp_path))
    assert (cfg.rewards.help, cfg.rewards.intent_gate) == (0.25, True)
    assert cfg.trainer.devices == 4
    assert (cfg.game.max_steps, cfg.game.schedule.freq) == (7, 2)


@pytest.mark.process
def test_a_saved_configuration_composes_to_itself(tmp_path: Path) -> None:
    from nemo_magic.config import save_resolved

    cfg = compose("magic_sandbox", ["seed=5", "game=paper"])
    save_resolved(cfg, tmp_path)
    assert compose("config", config_dir=str(tmp_path)) == cfg


@pytest.mark.parametrize(
    ("config_name", "overrides", "config_dir", "message"),
    [
        ("magic_sandbx", [], None, "there are: .*magic_sandbox"),
        ("magic_sandbox", [], "/no/such/folder", "--config-dir /no/such/folder: no such folder"),
        ("magic_sandbox", ["game=papr"], None, r"Could not find 'game/papr'(.|\n)*paper(.|\n)*robust"),
        ("magic_sandbox", ["game.batch_size=many"], None, "game.batch_size: Value 'many'"),
        ("magic_sandbox", ["actors.attacker.model.num_layers=x"], None, "actors.attacker.model.num_layers: Value 'x'"),
        ("magic_sandbox", ["actors.defender.model.activation=x"], None, "actors.defender.model.activation='x' must be"),
        ("magic_sandbox", ["grpo.kl_estimator=k9"], None, "grpo.kl_estimator='k9' must be one of: k1, k2, k3"),
        ("magic_sandbox", ["trainer.accelerator=tpu"], None, "trainer.accelerator='tpu' must be one of: gpu, cpu"),
        ("magic_sandbox", ["game.extra_verdict_fields=[helpfull]"], None, "game.extra_verdict_fields"),
        ("magic_sandbox", ["seed=1,2"], None, "seed=1,2: a run takes one value"),
        ("magic_sandbox", ["seed=[1"], None, "magic_sandbox: .*"),
        ("magic_sandbox", ["hydra.run.dir=/tmp"], None, "unknown key hydra.run.dir"),
        ("magic", [], None, r"data.train_files has to be given(.|\n)*judge.urls has to be given"),
    ],
)
def test_what_cannot_be_composed_is_a_config_error(
    config_name: str, overrides: list[str], config_dir: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(config_name, overrides, config_dir)


def test_broken_yaml_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("game: [1\n")
    with pytest.raises(ConfigError, match="broken"):
        compose("broken", config_dir=str(tmp_path))


def test_a_roles_own_keys_lie_over_the_models_and_derive_from_the_result() -> None:
    cfg = compose(
        "magic_sandbox", ["model.optim.lr=1e-3", "actors.defender.model={optim:{lr:1e-5},encoder_seq_length:64}"]
    )
    attacker, defender = role_model(cfg, "attacker"), role_model(cfg, "defender")
    assert (attacker.optim.lr, defender.optim.lr) == (cfg.actors.attacker.model["optim"]["lr"], 1e-5)
    assert defender.optim.sched.min_lr == 1e-5
    assert defender.max_position_embeddings == defender.encoder_seq_length == 64
    assert attacker.max_position_embeddings == attacker.encoder_seq_length == cfg.model.encoder_seq_length
    assert attacker.hidden_size == defender.hidden_size == cfg.model.hidden_size


def test_the_schedule_of_the_learning_rate_spans_the_steps_that_the_role_takes() -> None:
    overrides = ["game.max_steps=25", "game.schedule.freq=5", "game.schedule.ratio_defender=2", "grpo.minibatches=2"]
    cfg = compose("magic_sandbox", overrides)
    # 10 defender, 5 attacker, 10 defender rounds, two optimizer steps each
    assert (optimizer_steps(cfg, "defender"), optimizer_steps(cfg, "attacker")) == (40, 10)
    assert role_model(cfg, "defender").optim.sched.max_steps == 40
    assert role_model(cfg, "defender", steps=7).optim.sched.max_steps == 7


@pytest.mark.process
def test_configuring_imports_neither_torch_nor_nemo() -> None:
    code = (
        "import sys; from nemo_magic.config import compose; from nemo_magic import cli; compose('magic_sandbox');"
        "print(sorted({'torch', 'nemo', 'megatron', 'lightning', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_of_ones_own_can_be_taken_by_a_primary_configuration_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = (conf_dir() / "model" / "tiny.yaml").read_text().replace("num_layers: 3", "num_layers: 5")
    (tmp_path / "model" / "mine.yaml").write_text(text)
    assert compose("magic_sandbox", ["model=mine"], str(tmp_path)).model.num_layers == 5
    (tmp_path / "model" / "tiny.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"is the package.s, and so would be .*tiny\.yaml"):
        compose("magic_sandbox", [], str(tmp_path))


def test_a_warm_up_leaves_open_what_it_never_reads() -> None:
    given = ["sft.pool=/pool.jsonl", "sft.role=defender", "actors.defender.restore_from_path=/weights"]
    assert compose("magic_70b", given, command="sft").sft.role == "defender"
    with pytest.raises(ConfigError, match="actors.defender.restore_from_path has to be given"):
        compose("magic_70b", given[:2], command="sft")
    with pytest.raises(ConfigError, match="judge.urls has to be given"):
        compose("magic_70b", given[2:], command="train")
