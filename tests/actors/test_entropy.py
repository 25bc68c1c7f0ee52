"""The entropy of the next token and its gradient, against autograd in float64."""

from __future__ import annotations

import pytest
import torch

from nemo_magic.actors import entropy


@pytest.mark.parametrize("at_once", [3, 512])
def test_the_entropy_has_the_gradient_that_autograd_finds(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one rank, whose sums over ranks are its own. tests/actors/test_parity.py has several ranks."""
    monkeypatch.setattr(entropy.parallel_state, "get_tensor_model_parallel_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 5, 11, generator=draw)
    weights = torch.rand(2, 5, generator=draw)
    mine, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = entropy.next_token_entropy(mine, 0.7, at_once)
    scaled = torch.log_softmax(theirs / 0.7, dim=-1)
    expected = -(scaled.exp() * scaled).sum(dim=-1)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-6)
