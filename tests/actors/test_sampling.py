"""Choosing a token: the right distribution, at the right temperature, over the real vocabulary only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.actors.config import SamplingConfig
from nemo_magic.actors.errors import NotFiniteError
from nemo_magic.actors.sampling import refuse_not_finite, sample_tokens

# Six tokens and two places of padding that must never be chosen, however likely.
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 0.2, 5.0, 5.0])
VOCABULARY, END = 6, torch.tensor([2])
COUNT = 4000


def shares(config: SamplingConfig, banned: bool = False) -> list[float]:
    """How often each token is chosen over an even grid of draws: the distribution itself, without chance."""
    draw = ((torch.arange(COUNT, dtype=torch.double) + 0.5) / COUNT)[:, None]
    ban = torch.full((COUNT,), banned)
    ids, _ = sample_tokens(LOGITS.expand(COUNT, -1).float(), draw, config, VOCABULARY, ban, END)
    return (torch.bincount(ids, minlength=8) / COUNT).tolist()


def softmax(logits: torch.Tensor) -> list[float]:
    return [*logits[:VOCABULARY].softmax(0).tolist(), 0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    found = shares(SamplingConfig(temperature=temperature))
    assert found == pytest.approx(softmax(LOGITS / temperature), abs=1e-3)


def test_greedy_takes_the_likeliest_real_token() -> None:
    assert shares(SamplingConfig(use_greedy=True)) == [1, 0, 0, 0, 0, 0, 0, 0]


def test_top_k_and_top_p_cut_the_tail_and_nothing_else() -> None:
    cut = LOGITS.clone()
    cut[[2, 3, 5]] = -torch.inf
    assert shares(SamplingConfig(top_k=3)) == pytest.approx(softmax(cut), abs=1e-3)
    # 0.51, 0.19 and 0.11 are the first three; 0.75 is reached within the third.
    assert shares(SamplingConfig(top_p=0.75)) == pytest.approx(softmax(cut), abs=1e-3)


def test_a_row_that_may_not_end_does_not() -> None:
    cut = LOGITS.clone()
    cut[2] = -torch.inf
    assert shares(SamplingConfig(), banned=True) == pytest.approx(softmax(cut), abs=1e-3)


def test_log_probabilities_are_the_models_own_before_any_cut() -> None:
    logits, draw = LOGITS[None].float(), torch.tensor([[0.1]], dtype=torch.double)
    for config in (SamplingConfig(temperature=0.7), SamplingConfig(temperature=0.7, top_k=2)):
        ids, logprobs = sample_tokens(logits, draw, config, VOCABULARY, torch.tensor([False]), END)
        expected = (LOGITS / 0.7).log_softmax(0)[ids[0]]
        assert float(logprobs[0]) == pytest.approx(float(expected), abs=1e-6)


@given(
    bad=st.sampled_from([torch.nan, torch.inf]),
    row=st.integers(0, 2),
    column=st.integers(0, len(LOGITS) - 1),
    config=st.sampled_from(
        [SamplingConfig(), SamplingConfig(use_greedy=True), SamplingConfig(top_k=2), SamplingConfig(top_p=0.5)]
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_nothing_is_sampled_from_logits_that_are_not_finite(
    bad: float, row: int, column: int, config: SamplingConfig, dtype: torch.dtype
) -> None:
    logits = LOGITS.repeat(3, 1).to(dtype)
    draw, banned = torch.full((3, 1), 0.3, dtype=torch.double), torch.tensor([False, True, False])
    _, logprobs = sample_tokens(logits, draw, config, VOCABULARY, banned, END)
    refuse_not_finite(logprobs, "the defender")
    logits[row, column] = bad
    _, logprobs = sample_tokens(logits, draw, config, VOCABULARY, banned, END)
    with pytest.raises(NotFiniteError, match="logits of the defender are not finite in 1 of 3 rows"):
        refuse_not_finite(logprobs, "the defender")
