"""A mixture of experts whose experts are cut over tensor-parallel ranks as a dense MLP is.

Megatron-core's own layer learns at TP > 1 with sequence parallelism only: without it every rank has all tokens, its
dispatcher gathers them once for each rank, and the gradients of the experts come out TP times too large. Here every
rank computes its columns of the experts that the tokens chose, and the results are summed. Router, experts, their names
and their checkpoints are Megatron-core's.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import permute, unpermute


class TensorParallelExperts(MoELayer):
    """``MoELayer`` without a dispatcher: all experts are on every rank, and no token is dropped."""

    def forward(
        self, hidden_states: torch.Tensor, intermediate_tensors: Any = None, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        """[S, b, hidden] → the same, Σ over the chosen experts e of p_e · MLP_e(x); and no bias."""
        probs, chosen = self.router(hidden_states)  # both [S · b, experts]
        tokens = copy_to_tensor_model_parallel_region(hidden_states).view(-1, hidden_states.size(-1))
        rows, weights, order = permute(
            tokens, chosen, probs=probs, num_out_tokens=len(tokens) * self.config.moe_router_topk
        )
        # Here, and not before: Megatron-core does not sum a gradient that is not contiguous, as that of probs is.
        weights = copy_to_tensor_model_parallel_region(weights)
        results, _ = self.experts(rows, chosen.sum(dim=0), weights)
        summed = reduce_from_tensor_model_parallel_region(unpermute(results, order, tokens.shape))
        return summed.view(hidden_states.shape), None
