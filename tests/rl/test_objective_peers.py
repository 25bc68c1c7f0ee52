"""Ours beside numbers that other programs' own functions gave (benchmarks/objective_peers.py --record)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_magic.rl.advantages import AdvantageInputs, rollout_advantages
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.loss import LossInputs, grpo_loss

PAGE = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf-8")
RECORD: dict[str, Any] = json.loads(Path(__file__).with_name("peer_numbers.json").read_text(encoding="utf-8"))
DRAWS = [{name: torch.tensor(value, dtype=torch.double) for name, value in draw.items()} for draw in RECORD["draws"]]


def loss_and_gradient(draw: dict[str, torch.Tensor], config: GRPOConfig) -> tuple[float, torch.Tensor]:
    mask, theta = draw["mask"].bool(), draw["theta"].clone().requires_grad_()
    norm = Normalizer(float(mask.sum()), float((mask.sum(dim=1) > 0).sum()))
    inputs = LossInputs(theta, draw["advantages"], mask, draw["old"], draw["ref"], draw["rollout"])
    loss = grpo_loss(inputs, config, norm).loss
    loss.backward()
    assert theta.grad is not None
    return loss.item(), theta.grad


@pytest.mark.parametrize("name", RECORD["losses"])
def test_an_option_has_the_loss_and_the_gradient_that_the_peer_gave(name: str) -> None:
    recorded = RECORD["losses"][name]
    config = GRPOConfig(**recorded["options"])
    for draw, theirs in zip(DRAWS, recorded["draws"], strict=True):
        loss, gradient = loss_and_gradient(draw, config)
        # Our sums are in float32.
        assert loss == pytest.approx(theirs["loss"], abs=5e-7)
        assert float((gradient - torch.tensor(theirs["gradient"], dtype=torch.double)).abs().max()) < 2e-7


@pytest.mark.parametrize("name", RECORD["losses"])
def test_an_options_numbers_are_not_those_of_plain_grpo(name: str) -> None:
    plain, own = (RECORD["losses"][one]["draws"] for one in ("GRPO", name))
    assert name == "GRPO" or any(a["loss"] != b["loss"] or a["gradient"] != b["gradient"] for a, b in
                                 zip(plain, own, strict=True))  # fmt: skip


@pytest.mark.parametrize("name", RECORD["advantages"])
def test_a_baseline_has_the_advantages_that_the_peer_gave(name: str) -> None:
    recorded = RECORD["advantages"][name]
    for rewards, theirs in zip(RECORD["rewards"], recorded["draws"], strict=True):
        every = torch.ones(len(rewards), dtype=torch.bool)
        groups = torch.arange(len(rewards) // 4).repeat_interleave(4)
        inputs = AdvantageInputs(torch.tensor(rewards), groups, every, ~every)
        ours = rollout_advantages(inputs, GRPOConfig(**recorded["options"])).values
        # The peers add 1e-6 to a standard deviation of at least a half.
        assert float((ours - torch.tensor(theirs)).abs().max()) < 4e-6


def test_the_page_has_a_row_with_a_difference_for_every_option_that_was_recorded() -> None:
    names = [*RECORD["losses"], *RECORD["advantages"]]
    rows = {line.split("|")[1].strip(): line.split("|") for line in PAGE.splitlines() if line.startswith("| ")}
    assert [name for name in names if name not in rows] == []
    for name in RECORD["losses"]:
        assert max(float(cell) for cell in rows[name][3:5]) < 5e-7, name
    for name in RECORD["advantages"]:
        assert float(rows[name][3]) < 4e-6, name
