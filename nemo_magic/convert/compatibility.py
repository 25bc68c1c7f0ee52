"""A run's model has to be that of the weights it starts from.

Shapes do not show it: layers with another epsilon or rotary base load without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.config.text_keys import read_yaml, with_types
from nemo_magic.convert.errors import ConvertError
from nemo_magic.convert.families import MODEL, difference
from nemo_magic.convert.nemo_file import model_from
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig


def refuse_other_models(cfg: MagicConfig, models: Mapping[Role, ModelConfig]) -> None:
    """Compare every role's model with the ``model.yaml`` beside the converted weights it starts from, if there is one.

    Raises:
        ConfigError: they are not the same model; the message has the keys in which they differ.
    """
    problems = []
    for role, model in models.items():
        start = cfg.actors.of(role).restore_from_path
        model_file = Path(start or "") / MODEL
        if start is None or not model_file.is_file():
            continue
        try:
            converted = model_from(with_types(read_yaml(model_file), ModelConfig) or {}, str(model_file))
        except (ConvertError, yaml.YAMLError, AttributeError, ValueError) as error:
            raise ConfigError(f"{model_file} is no model's configuration: {error}") from error
        problems += [
            f"{role}: model.{text} as in {model_file}, which came with actors.{role}.restore_from_path={start}"
            for text in difference(model, converted)
        ]
    if problems:
        raise ConfigError("\n".join(problems))
