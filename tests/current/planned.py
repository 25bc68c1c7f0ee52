"""What Megatron-core of this environment says of shapes: python -m tests.current.planned VOCABULARY."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf

from nemo_magic.model_config import ModelConfig
from nemo_magic.planner.shapes import measure, total_parameters
from tests.planner.worlds import ROWS, TOKENS, WORLDS, planned_model
from tests.presets import model_preset

PRESETS = ("llama31_70b", "qwen3_8b")


def shapes(vocabulary: int) -> dict[str, Any]:
    """Of the presets at TP4 × PP2, and of the small worlds."""
    found: dict[str, Any] = {}
    for name in PRESETS:
        model: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), model_preset(name)))
        found[name] = asdict(measure(model, model.vocab_size, 4, 2, 1, 512))
        found[name]["parameters"] = total_parameters(model, model.vocab_size)
    for name, (tp, pp, _) in WORLDS.items():
        found[name] = asdict(measure(planned_model(name), vocabulary, tp, pp, ROWS, TOKENS, torch.float32))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(shapes(int(sys.argv[1]))))
