# ruff: noqa: F722 (axis names in strings)
"""``grpo.baseline=group``: GRPO (DeepSeekMath, arXiv 2402.03300; MAGIC, section 4.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.groups import ZERO_SPREAD, GroupStatistics


def group_advantages(groups: GroupStatistics, config: GRPOConfig) -> Float[Tensor, " sample"]:
    """``A_i = (r_i − mean(r)) / std(r)`` over the valid samples of each sample's group; 0 in a group without spread.

    ``std`` is the population's (÷ n) or the sample's (÷ n − 1, as verl, TRL and OpenRLHF have it) standard deviation,
    as ``grpo.std`` says; without ``grpo.scale_by_std`` it is 1 (Dr. GRPO, arXiv 2503.20783).
    """
    variance = groups.variance
    if config.std == "sample":
        variance = variance * groups.count / (groups.count - 1).clamp(min=1)
    scale = variance.sqrt().clamp(min=ZERO_SPREAD) if config.scale_by_std else torch.ones_like(variance)
    return torch.where(groups.has_spread, groups.centred / scale, 0.0).float()
