# ruff: noqa: F722 (axis names in strings)
"""From a loss per token to a microbatch's share of the loss of a whole optimizer step."""

# No postponed annotations: jaxtyping cannot check the fields of a dataclass that are strings.
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.masked import masked_sum, response_mean, response_sum


@dataclass(frozen=True)
class Normalizer:
    """Trained tokens and trained responses of *all* microbatches and data-parallel ranks of one optimizer step."""

    tokens: float
    sequences: float


def aggregate(
    per_token: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], config: GRPOConfig, norm: Normalizer
) -> Float[Tensor, ""]:
    """This microbatch's share of the mean that ``grpo.aggregation`` names, over T tokens and S responses of the step.

    ``token``: Σ / T (DAPO, arXiv 2503.14476). ``sequence``: the mean over responses of each one's mean over its tokens
    (GRPO, arXiv 2402.03300). ``constant``: Σ / (S · L) with L = ``grpo.constant_length``, whatever the responses' own
    lengths (Dr. GRPO, arXiv 2503.20783). ``microbatch``: Σ over the microbatch / its tokens, × its responses / S: what
    the published code computes. It is the only one that depends on how rows are cut into microbatches.
    """
    sequences = max(norm.sequences, 1.0)
    if config.aggregation == "token":
        return masked_sum(per_token, mask) / max(norm.tokens, 1.0)
    if config.aggregation == "sequence":
        return response_mean(per_token, mask).sum() / sequences
    if config.aggregation == "constant":
        assert config.constant_length is not None, "the configuration's own check"
        return response_sum(per_token, mask).sum() / (sequences * config.constant_length)
    responses = mask.any(dim=1).sum()
    return masked_sum(per_token, mask) / mask.sum().clamp(min=1) * responses / sequences
