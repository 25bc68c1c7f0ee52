"""``.nemo`` files: an uncompressed tar of ``model_config.yaml`` and the checkpoint ``model_weights``."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.nemo_archive import CONFIG, extract
from nemo_magic.config.secrets import texts_in
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.model_config import ModelConfig

_TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"


def nemo_config(model: ModelConfig, precision: str) -> dict[str, Any]:
    """The ``model_config.yaml`` of a ``MegatronGPTModel``, with TP1 PP1, which a user of the file overrides."""
    keys = dataclasses.asdict(model)
    del keys["peft"]
    keys["optim"] = {"name": "fused_adam", "lr": 1e-6}
    return keys | {
        "target": _TARGET,
        "mcore_gpt": True,
        "precision": precision,
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "hidden_dropout": 0.0,
        "data": {"data_impl": "mock", "data_prefix": [], "splits_string": None, "seq_length": model.encoder_seq_length},
    }


def pack(folder: Path, target: Path) -> None:
    """Move all files of ``folder`` into the ``.nemo`` file ``target``, one at a time, to save disk space."""
    with tarfile.open(target, "w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, arcname=f"./{path.relative_to(folder)}", recursive=False)
            if path.is_file():
                path.unlink()


def unpack(path: Path, folder: Path) -> ModelConfig:
    """Extract a ``.nemo`` file to ``folder`` and read its model.

    Raises:
        ConvertError: it is no ``.nemo`` file, or its weights are not a Megatron-core distributed checkpoint.
    """
    try:
        extract(path, folder)
    except ModelError as error:
        raise ConvertError(str(error)) from error
    return model_from(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")), str(path))


def model_from(keys: Mapping[str, Any], where: str, own: Mapping[str, Any] | None = None) -> ModelConfig:
    """A ModelConfig from NeMo's keys; keys that ModelConfig does not have do not change what a model computes.

    Values are taken as they stand: an interpolation of theirs could read this process's environment.

    Args:
        where: the file of the keys, for messages.
        own: keys that override the others.

    Raises:
        ConvertError: a value is of the wrong type or not allowed.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"optim", "peft", "tokenizer"}
    chosen = {key: value for key, value in keys.items() if key in known}
    tokenizer = {key: (keys.get("tokenizer") or {}).get(key) for key in ("library", "type")}
    layers = (
        chosen,
        {"tokenizer": {key: value for key, value in tokenizer.items() if value is not None}},
        {key: value for key, value in (own or {}).items() if key in known},
    )
    for text in texts_in(layers):
        if "${" in text:
            raise ConvertError(f"{where}: {text!r} refers to something outside of the file; give its value")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), *layers)
        model = OmegaConf.to_object(merged)
    except Exception as error:
        raise ConvertError(f"{where}: {str(error).splitlines()[0]}") from error
    assert isinstance(model, ModelConfig)
    return model
