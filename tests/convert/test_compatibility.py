"""A run that begins with converted weights is of the model they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_magic import cli
from nemo_magic.config import ConfigError, compose
from nemo_magic.config.validation import models
from nemo_magic.convert.compatibility import refuse_other_models
from nemo_magic.hf_format.families import model_yaml

OVERRIDES = ["actors.attacker.restore_from_path=null", "judge.launch=false", "judge.urls=[http://127.0.0.1:9]"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as ``hf-to-nemo`` leaves it, as far as its model goes."""
    cfg = compose("magic_sandbox", OVERRIDES)
    OmegaConf.save(OmegaConf.create(model_yaml(cfg.model)), tmp_path / "model.yaml")
    return tmp_path


def test_the_same_model_is_taken_whatever_its_layout(weights: Path) -> None:
    layout = ["model.tensor_model_parallel_size=2", "model.micro_batch_size=4"]
    cfg = compose("magic_sandbox", [*OVERRIDES, *layout, f"actors.defender.restore_from_path={weights}"])
    refuse_other_models(cfg, models(cfg))


@pytest.mark.parametrize("key", ["layernorm_epsilon=1e-6", "rotary_base=500000"])
def test_what_shapes_do_not_show_is_refused_by_key(weights: Path, key: str) -> None:
    cfg = compose("magic_sandbox", [*OVERRIDES, f"model.{key}", f"actors.defender.restore_from_path={weights}"])
    with pytest.raises(ConfigError, match=rf"defender: model\.{key.partition('=')[0]}=.* not .*model\.yaml"):
        refuse_other_models(cfg, models(cfg))


def test_a_run_says_so_before_anything_is_built(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [f"exp_manager.explicit_log_dir={weights / 'run'}", f"actors.defender.restore_from_path={weights}"]
    assert cli.main(["train", "-cn", "magic_sandbox", *OVERRIDES, "model.rotary_base=500000", *run]) == 2
    assert "model.rotary_base=500000, not 10000" in capsys.readouterr().err
    assert not (weights / "run").exists()
