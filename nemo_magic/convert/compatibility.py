"""Weights whose shapes fit another model: the same layers with another epsilon or rotary base load without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.convert.families import MODEL, difference
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig


def refuse_other_models(cfg: MagicConfig, models: Mapping[Role, ModelConfig]) -> None:
    """Compare every role's model with the ``model.yaml`` beside the converted weights it begins with, if it has one.

    Raises:
        ConfigError: they are not the same model; the message has the keys in which they differ.
    """
    problems = []
    for role, model in models.items():
        start = cfg.actors.of(role).restore_from_path
        written = Path(start or "") / MODEL
        if start is None or not written.is_file():
            continue
        try:
            meant = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(written)))
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{written} is no model's configuration: {error}") from error
        assert isinstance(meant, ModelConfig)
        problems += [
            f"{role}: model.{text} as in {written}, which came with actors.{role}.restore_from_path={start}"
            for text in difference(model, meant)
        ]
    if problems:
        raise ConfigError("\n".join(problems))
