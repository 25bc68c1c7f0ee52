"""The shapes and types that ``nemo_magic.rl`` is annotated with are checked in the tests, and not in production."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from nemo_magic.rl.advantages import AdvantageInputs
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.batch import MicroBatch
from nemo_magic.rl.groups import GroupStatistics
from nemo_magic.rl.loss import LossInputs, nll_loss

B, T = 3, 5
WRONG = (TypeCheckError, BeartypeCallHintParamViolation)


def bools(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def loss_inputs(**changed: torch.Tensor) -> LossInputs:
    return LossInputs(
        **{"logprobs": torch.zeros(B, T), "advantages": torch.zeros(B), "mask": bools(B, T), **changed}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"logprobs": torch.zeros(B, T + 1)},
        {"logprobs": torch.zeros(B * T)},
        {"logprobs": torch.zeros(B, T, dtype=torch.long)},
        {"advantages": torch.zeros(B + 1)},
        {"advantages": torch.zeros(B, 1)},
        {"mask": bools(B, T - 1)},
        {"mask": torch.ones(B, T)},
        {"old_logprobs": torch.zeros(B, T - 1)},
        {"ref_logprobs": torch.zeros(T, B)},
        {"rollout_logprobs": torch.zeros(1, T)},
    ],
    ids=lambda wrong: " ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in wrong.items()),
)
def test_loss_inputs_of_another_shape_or_type_are_refused(wrong: dict[str, torch.Tensor]) -> None:
    loss_inputs()
    with pytest.raises(WRONG):
        loss_inputs(**wrong)


def test_advantage_inputs_of_different_lengths_are_refused() -> None:
    AdvantageInputs(torch.zeros(B), torch.zeros(B, dtype=torch.long), bools(B), bools(B))
    with pytest.raises(WRONG):
        AdvantageInputs(torch.zeros(B), torch.zeros(B, dtype=torch.long), bools(B), bools(B + 1))


def test_a_microbatch_whose_mask_is_as_wide_as_its_tokens_is_refused() -> None:
    tokens, rows = torch.zeros(B, T, dtype=torch.long), torch.arange(B)
    MicroBatch(tokens, bools(B, T - 1), torch.zeros(B), rows)
    with pytest.raises(WRONG):
        MicroBatch(tokens, bools(B, T), torch.zeros(B), rows)
    with pytest.raises(WRONG):
        MicroBatch(tokens, bools(B, T - 1), torch.zeros(B), rows, old_logprobs=torch.zeros(B, T))


def test_arguments_of_functions_are_checked_too() -> None:
    with pytest.raises(WRONG):
        nll_loss(torch.zeros(B, T), bools(B, T - 1), Normalizer(1.0, 1.0))
    with pytest.raises(WRONG):
        GroupStatistics.of(torch.zeros(B), torch.zeros(B), bools(B))


@pytest.mark.process
def test_nothing_is_checked_in_production() -> None:
    program = (
        "import sys, torch; from nemo_magic.rl.loss import LossInputs; "
        "LossInputs(torch.zeros(2, 3), torch.zeros(7), torch.zeros(4)); assert 'beartype' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
