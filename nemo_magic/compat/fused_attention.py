"""Attention by torch's fused kernel: what transformer_engine's is to a GPU, for layers without it.

Megatron-core's own keeps the scores of all pairs of positions, repeats keys and values for every query of a group, and
takes several times as long, most of all at one new token.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from torch.nn.functional import scaled_dot_product_attention


class FusedDotProductAttention(DotProductAttention):
    """``DotProductAttention`` that computes the same without the scores in memory."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Causal attention of queries [S, b, heads, d] to keys and values [S or more, b, groups, d]: [S, b, heads · d].

        What the kernel has not (a mask of one's own, dropout, whose random numbers differ by tensor-parallel rank) is
        left to Megatron-core.
        """
        dropped = self.training and self.attention_dropout.p > 0
        if attention_mask is not None or attention_bias is not None or packed_seq_params is not None or dropped:
            return super().forward(query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params)
        context = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=query.size(0) > 1,  # a single query is the last position: it sees all keys
            scale=self.softmax_scale * (self.scale_mask_softmax.scale or 1),
            enable_gqa=True,
        )
        return context.permute(2, 0, 1, 3).flatten(2)
