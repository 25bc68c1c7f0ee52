"""The models behind guards: an OpenAI-compatible server, or Hugging Face transformers in this process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

from nemo_magic.judge.models.base import Model

MODELS: dict[str, str] = {
    "openai": "nemo_magic.judge.models.openai:openai_model",
    "transformers": "nemo_magic.judge.models.transformers:TransformersModel",
}


def build_model(config: Mapping[str, Any]) -> Model:
    """The model of a guard's ``model`` settings: ``kind`` (``openai`` by default) and that kind's own keys.

    Raises ValueError for another kind, or for keys and values that it does not take.
    """
    settings = dict(config)
    kind = settings.pop("kind", "openai")
    if kind not in MODELS:
        raise ValueError(f"judge.guard_config.model.kind={kind!r} must be one of: {', '.join(sorted(MODELS))}")
    module, _, factory = MODELS[kind].partition(":")
    try:
        return cast(Model, getattr(importlib.import_module(module), factory)(**settings))
    except TypeError as error:
        raise ValueError(f"judge.guard_config.model={dict(config)} does not fit kind={kind!r}: {error}") from error
