"""A run's model has to be that of the weights it starts from.

Shapes do not show it: layers with another epsilon or rotary base load without an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from nemo_magic.actors.adapter_card import AdapterCard, base_digest
from nemo_magic.actors.errors import ModelError
from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.config.text_keys import read_yaml, with_types
from nemo_magic.convert.nemo_file import model_from
from nemo_magic.game.episode import Role
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import MODEL, difference
from nemo_magic.model_config import ModelConfig


def refuse_other_models(cfg: MagicConfig, models: Mapping[Role, ModelConfig]) -> None:
    """Compare every role's model with the ``model.yaml`` beside the converted weights it starts from, if there is one,
    and its adapters with the base that they say they stand on.

    Raises:
        ConfigError: they are not the same model; the message has the keys in which they differ.
    """
    problems: list[str] = []
    for role, model in models.items():
        start = cfg.actors.of(role).restore_from_path
        problems += _adapter_problems(role, start, model)
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


def _adapter_problems(role: Role, start: str | None, model: ModelConfig) -> Iterator[str]:
    peft = model.peft
    try:
        own = AdapterCard.read(Path(start)) if start is not None else None
        if start is not None and own is not None:
            yield (
                f"actors.{role}.restore_from_path={start} holds adapters, and has to be their base: set it to "
                f"{own.base}, model.peft.peft_scheme=lora and actors.{role}.model.peft.restore_from_path={start}"
            )
            return
        theirs = AdapterCard.read(Path(peft.restore_from_path)) if peft.restore_from_path is not None else None
    except ModelError as error:
        raise ConfigError(str(error)) from error
    if start is not None and theirs is not None and Path(start).exists():
        mine = AdapterCard.of(start, base_digest(Path(start)), peft.lora_tuning)
        yield from (
            f"{role}: model.peft.restore_from_path={peft.restore_from_path} holds other adapters: {text}"
            for text in mine.differences(theirs)
        )
