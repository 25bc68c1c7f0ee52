"""Every random state of a rank, to be saved and set again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel


def random_states() -> dict[str, Any]:
    """The states of this rank's generators, as tensors, numbers and strings only."""
    version, internal, gauss = random.getstate()
    numbers: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = numbers
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "parallel": dict(tensor_parallel.get_cuda_rng_tracker().get_states()),
        "python": (version, internal, gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go on from what ``random_states`` returned."""
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state(states["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(states["parallel"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
