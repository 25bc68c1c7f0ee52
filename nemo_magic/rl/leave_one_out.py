# ruff: noqa: F722 (axis names in strings)
"""``grpo.baseline=leave_one_out``: RLOO (Ahmadian et al., Back to Basics, arXiv 2402.14740)."""

import torch
from jaxtyping import Float
from torch import Tensor

from nemo_magic.rl.groups import GroupStatistics


def leave_one_out_advantages(groups: GroupStatistics) -> Float[Tensor, " sample"]:
    """``A_i = r_i − mean(r_j, j ≠ i)`` over the valid samples of its group; 0 in a group without spread.

    The mean of the others does not depend on the sample, so that the baseline is unbiased. It equals
    ``n / (n − 1) · (r_i − mean(r))``.
    """
    factor = groups.count / (groups.count - 1).clamp(min=1)
    return torch.where(groups.has_spread, factor * groups.centred, 0.0).float()
