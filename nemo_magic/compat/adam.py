"""apex's Adam, where there is no apex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw


class FusedAdam(torch.optim.AdamW):
    """apex's FusedAdam in torch: AdamW whose step count lives in the parameter group, so that Megatron-core can shard
    the state (torch's own Adam keeps one scalar tensor per parameter, which it cannot). A subclass of AdamW because
    NeMo asks for one before it fills in the state of parameters that were never stepped."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's own looks for a step count in every parameter's state.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One AdamW update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            done = group.get("step", 0)
            group["step"] = done + 1
            learning = [p for p in group["params"] if p.grad is not None]
            for p in learning:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            adamw(
                learning,
                [p.grad for p in learning],
                [self.state[p]["exp_avg"] for p in learning],
                [self.state[p]["exp_avg_sq"] for p in learning],
                [],
                [torch.tensor(float(done), device=p.device) for p in learning],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        return loss
