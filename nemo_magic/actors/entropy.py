"""The entropy of the next token from logits that are split over tensor-parallel ranks, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state


def next_token_entropy(logits: torch.Tensor, temperature: float, at_once: int = 128) -> torch.Tensor:
    """[b, S] entropies in nats of vocabulary-parallel ``logits`` [b, S, V / TP] divided by ``temperature``.

    About ``at_once`` tokens at a time, since several copies of their logits are made. All tensor-parallel ranks take
    part.
    """
    tokens = max(1, at_once // logits.size(0))
    result: torch.Tensor = _Entropy.apply(logits, temperature, tokens)
    return result


class _Entropy(torch.autograd.Function):
    """``H = log Z − Σ p s`` and ``∂H / ∂s_j = −p_j (log p_j + H)``, with s the logits over the temperature. The
    backward pass needs no other rank."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, temperature: float, tokens: int) -> torch.Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        entropies, normalizers = [], []
        for part in logits.split(tokens, dim=1):
            scaled = part.float() / temperature
            largest = scaled.amax(dim=-1)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
            scaled = scaled - largest[..., None]
            weights = scaled.exp()
            sums = torch.stack([weights.sum(dim=-1), (weights * scaled).sum(dim=-1)])
            torch.distributed.all_reduce(sums, group=group)
            entropies.append(sums[0].log() - sums[1] / sums[0])
            normalizers.append(sums[0].log() + largest)
        entropy = torch.cat(entropies, dim=1)
        ctx.save_for_backward(logits, entropy, torch.cat(normalizers, dim=1))
        ctx.temperature, ctx.tokens = temperature, tokens
        return entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, entropy, normalizer = ctx.saved_tensors
        parts, saved = [], (logits, entropy, normalizer, grads[0])
        for part, h, z, grad in zip(*(x.split(ctx.tokens, dim=1) for x in saved), strict=True):
            logprobs = part.float() / ctx.temperature - z[..., None]
            slope = -logprobs.exp() * (logprobs + h[..., None]) / ctx.temperature
            parts.append((slope * grad[..., None]).to(logits.dtype))
        return torch.cat(parts, dim=1), None, None
