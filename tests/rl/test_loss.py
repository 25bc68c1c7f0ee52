"""The GRPO loss against hand-computed cases and against the paper's equations written out in float64 loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_magic.rl.advantages import AdvantageInputs, Advantages, rollout_advantages
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.batch import Row, logprob_names, microbatches, scatter_back
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.kl import kl_estimate
from nemo_magic.rl.loss import LossInputs, grpo_loss, nll_loss


def reference_loss(logprobs, old, ref, advantages, mask, config: GRPOConfig) -> float:
    """−(1/N) Σ [ min(ρA, clip(ρ)A) − β KL ], token by token, as section 4.1 has it. Python floats are float64."""
    sequences = []
    for row in range(len(advantages)):
        terms = []
        for t in range(len(mask[row])):
            if not mask[row][t]:
                continue
            rho = math.exp(logprobs[row][t] - (logprobs[row][t] if old is None else old[row][t]))
            clipped = min(max(rho, 1 - config.ratio_clip_low), 1 + config.ratio_clip_high)
            term = min(rho * advantages[row], clipped * advantages[row])
            if config.kl_beta:
                d = ref[row][t] - logprobs[row][t]
                kl = {"k1": -d, "k2": 0.5 * d * d, "k3": math.exp(d) - d - 1}[config.kl_estimator]
                term -= config.kl_beta * kl
            terms.append(-term)
        if terms:
            sequences.append(terms)
    if config.aggregation == "token":
        return sum(map(sum, sequences)) / sum(map(len, sequences))
    return sum(sum(terms) / len(terms) for terms in sequences) / len(sequences)


def case(seed: int, rows: int = 5, width: int = 7):
    draw = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(rows, width, generator=draw, dtype=torch.double)
    old = logprobs + 0.6 * torch.randn(rows, width, generator=draw, dtype=torch.double)
    ref = logprobs + 0.6 * torch.randn(rows, width, generator=draw, dtype=torch.double)
    advantages = torch.randn(rows, generator=draw, dtype=torch.double)
    mask = torch.rand(rows, width, generator=draw) < 0.7
    mask[0] = False  # a dummy row
    mask[1, 2] = True
    return logprobs, old, ref, advantages, mask


def trained(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def counts(mask: torch.Tensor) -> Normalizer:
    return Normalizer(float(mask.sum()), float((mask.sum(1) > 0).sum()))


OPTIONS = [
    GRPOConfig(ratio_clip_low=low, ratio_clip_high=high, kl_beta=beta, kl_estimator=kl, aggregation=aggregation)
    for (low, high), (beta, kl), aggregation in itertools.product(
        [(0.2, 0.2), (0.1, 0.4)], [(0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")], ["token", "sequence"]
    )
]


@pytest.mark.parametrize("config", OPTIONS, ids=str)
@pytest.mark.parametrize("on_policy", [False, True])
def test_loss_and_gradient_equal_the_equations_in_float64(config: GRPOConfig, on_policy: bool) -> None:
    for seed in range(3):
        logprobs, old, ref, advantages, mask = case(seed)
        theta = logprobs.clone().float().requires_grad_()
        stale = None if on_policy else old.float()
        inputs = LossInputs(theta, advantages.float(), mask, stale, ref.float() if config.kl_beta else None)
        loss = grpo_loss(inputs, config, counts(mask)).loss
        loss.backward()
        frozen = logprobs if on_policy else old

        def at(x: torch.Tensor, frozen=frozen, ref=ref, advantages=advantages, mask=mask) -> float:
            return reference_loss(
                x.tolist(),
                frozen.tolist(),
                ref.tolist(),
                advantages.tolist(),
                mask.tolist(),
                config,
            )

        assert float(loss) == pytest.approx(at(logprobs), abs=1e-6)
        assert theta.grad is not None
        step = 1e-6
        for row, t in ((1, 2), (2, 0), (3, 4), (4, 6)):
            up, down = logprobs.clone(), logprobs.clone()
            up[row, t] += step
            down[row, t] -= step
            slope = (at(up) - at(down)) / (2 * step)
            assert float(theta.grad[row, t]) == pytest.approx(slope, abs=2e-6), (row, t)


def test_a_hand_computed_clipped_case() -> None:
    # ρ = 2 and A = 1: clipped at 1.2. ρ = 0.5 and A = −1: min(−0.5, −0.8) = −0.8. Mean of −1.2 and 0.8.
    logprobs = torch.tensor([[math.log(2.0)], [math.log(0.5)]])
    inputs = LossInputs(logprobs, torch.tensor([1.0, -1.0]), trained(2, 1), torch.zeros(2, 1))
    outputs = grpo_loss(inputs, GRPOConfig(), Normalizer(2.0, 2.0))
    assert float(outputs.loss) == pytest.approx((-1.2 + 0.8) / 2, abs=1e-7)
    assert [float(x) for x in outputs.metrics["clip_high_share"]] == [1, 2]
    assert [float(x) for x in outputs.metrics["clip_low_share"]] == [1, 2]


def test_low_and_high_clip_are_separate() -> None:
    config = GRPOConfig(ratio_clip_low=0.1, ratio_clip_high=0.5)
    logprobs = torch.tensor([[math.log(1.4)], [math.log(0.5)]])
    loss = grpo_loss(
        LossInputs(logprobs, torch.tensor([1.0, -1.0]), trained(2, 1), torch.zeros(2, 1)), config, Normalizer(1.0, 1.0)
    )
    assert float(loss.loss) == pytest.approx(-1.4 + 0.9, abs=1e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators_by_hand(name: str) -> None:
    value = kl_estimate(torch.tensor([0.0]), torch.tensor([math.log(2.0)]), name)
    expected = {"k1": -math.log(2), "k2": math.log(2) ** 2 / 2, "k3": 2 - math.log(2) - 1}[name]
    assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_shares_of_microbatches_and_ranks_sum_to_the_loss_of_the_whole(aggregation: str) -> None:
    config = GRPOConfig(kl_beta=0.2, aggregation=aggregation)
    logprobs, old, ref, advantages, mask = case(9, rows=9)
    norm = counts(mask)

    def loss_of(rows: slice) -> float:
        return float(
            grpo_loss(LossInputs(logprobs[rows], advantages[rows], mask[rows], old[rows], ref[rows]), config, norm).loss
        )

    whole = loss_of(slice(0, 9))
    for cuts in ([0, 4, 9], [0, 1, 2, 9], [0, 3, 6, 9]):
        assert sum(loss_of(slice(a, b)) for a, b in itertools.pairwise(cuts)) == pytest.approx(whole, abs=1e-6)


def test_masked_tokens_give_exactly_nothing_even_where_they_are_not_numbers() -> None:
    *values, mask = case(4)
    logprobs, old, ref, advantages = (x.float() for x in values)
    dirty = [
        torch.where(mask, x, torch.tensor(bad)) for x, bad in ((logprobs, -math.inf), (old, math.nan), (ref, math.nan))
    ]
    config = GRPOConfig(kl_beta=0.3)
    theta = dirty[0].clone().requires_grad_()
    loss = grpo_loss(LossInputs(theta, advantages, mask, dirty[1], dirty[2]), config, counts(mask)).loss
    clean = grpo_loss(LossInputs(logprobs, advantages, mask, old, ref), config, counts(mask)).loss
    loss.backward()
    assert float(loss) == float(clean)
    assert theta.grad is not None
    assert torch.all(theta.grad[~mask] == 0)
    assert torch.isfinite(theta.grad).all()


def test_a_fully_masked_microbatch_has_zero_loss_and_zero_gradient() -> None:
    theta = torch.randn(3, 4, requires_grad=True)
    loss = grpo_loss(LossInputs(theta, torch.randn(3), ~trained(3, 4)), GRPOConfig(), Normalizer(0.0, 0.0)).loss
    loss.backward()
    assert float(loss) == 0.0
    assert theta.grad is not None
    assert torch.count_nonzero(theta.grad) == 0


def test_kl_without_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kl_beta=0.1 needs reference"):
        grpo_loss(
            LossInputs(torch.zeros(1, 1), torch.zeros(1), trained(1, 1)), GRPOConfig(kl_beta=0.1), Normalizer(1.0, 1.0)
        )


def group_advantages(rewards, groups, valid, **options) -> Advantages:
    inputs = AdvantageInputs(rewards, groups, valid, torch.zeros_like(valid))
    return rollout_advantages(inputs, GRPOConfig(**options))


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 7.0, 9.0])
    groups = torch.tensor([0, 0, 0, 4, 4, 4, 2, 2])
    valid = torch.tensor([True, True, True, True, True, True, True, False])
    advantages = group_advantages(rewards, groups, valid)
    root = math.sqrt(1.5)
    assert advantages.values.tolist() == pytest.approx([-root, 0, root, 0, 0, 0, 0, 0], abs=1e-6)
    assert advantages.live.tolist() == [True] * 3 + [False] * 5


def test_an_invalid_reward_changes_nothing_whatever_it_is() -> None:
    groups, valid = torch.zeros(4, dtype=torch.long), torch.tensor([True, True, True, False])
    results = [
        group_advantages(torch.tensor([0.0, 1.0, 5.0, bad]), groups, valid).values for bad in (0.0, 1e9, math.nan)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_advantages_equal_the_equation_in_float64() -> None:
    draw = torch.Generator().manual_seed(1)
    rewards, groups = torch.randn(40, generator=draw), torch.randint(0, 6, (40,), generator=draw)
    scaled = group_advantages(rewards, groups, torch.ones(40, dtype=torch.bool))
    unscaled = group_advantages(rewards, groups, torch.ones(40, dtype=torch.bool), scale_by_std=False)
    for i in range(40):
        group = [float(rewards[j]) for j in range(40) if groups[j] == groups[i]]
        mean = sum(group) / len(group)
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / len(group))
        assert float(scaled.values[i]) == pytest.approx((float(rewards[i]) - mean) / std, abs=1e-6)
        assert float(unscaled.values[i]) == pytest.approx(float(rewards[i]) - mean, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "values", "live"),
    [
        ("keep", [-1.0, 1.0, -1.0, 1.0], [True] * 4),
        ("mask", [-1.0, 1.0, 0.0, 1.0], [True, True, False, True]),
        ("drop", [-math.sqrt(2), math.sqrt(0.5), 0.0, math.sqrt(0.5)], [True, True, False, True]),
    ],
)
def test_truncated_responses_are_treated_as_the_option_says(option: str, values: list[float], live: list[bool]) -> None:
    truncated = torch.tensor([False, False, True, False])
    rewards, groups = torch.tensor([0.0, 2.0, 0.0, 2.0]), torch.zeros(4, dtype=torch.long)
    inputs = AdvantageInputs(rewards, groups, torch.ones(4, dtype=torch.bool), truncated)
    advantages = rollout_advantages(inputs, GRPOConfig(truncated=option))
    assert advantages.values.tolist() == pytest.approx(values, abs=1e-6)
    assert advantages.live.tolist() == live


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_a_batch_as_high_as_it_is_wide_weighs_rows_and_not_columns(aggregation: str) -> None:
    advantages = torch.tensor([1.0, -2.0, 3.0])
    theta = torch.zeros(3, 3, requires_grad=True)
    config = GRPOConfig(aggregation=aggregation)
    grpo_loss(LossInputs(theta, advantages, trained(3, 3)), config, Normalizer(9.0, 3.0)).loss.backward()
    assert theta.grad is not None
    assert torch.allclose(theta.grad, -advantages[:, None].expand(3, 3) / 9)


def rows() -> list[Row]:
    lengths = [(3, 4), (2, 9), (5, 1), (1, 1), (4, 4), (6, 6), (2, 2)]
    return [
        Row(tuple(range(1, p + 1)), tuple(range(50, 50 + r)), float(i), old_logprobs=tuple(-1.0 * j for j in range(r)))
        for i, (p, r) in enumerate(lengths)
    ]


def test_microbatches_hold_every_row_once_and_only_as_wide_as_needed() -> None:
    batches = microbatches(rows(), 3, pad_id=0)
    assert [tuple(b.tokens.shape) for b in batches] == [(3, 6), (3, 11), (3, 12)]
    assert sorted(i for b in batches for i in b.row_index.tolist()) == [-1, -1, 0, 1, 2, 3, 4, 5, 6]
    assert sum(float(b.mask.sum()) for b in batches) == sum(len(r.response_ids) for r in rows())


def test_mask_and_values_sit_on_the_positions_that_score_the_response() -> None:
    batches = microbatches(rows(), 2, pad_id=0)
    targets = scatter_back(batches, [b.tokens[:, 1:].float() for b in batches], 7)
    assert targets == [tuple(map(float, row.response_ids)) for row in rows()]
    old = scatter_back(batches, [b.old_logprobs for b in batches], 7)  # type: ignore[misc]
    assert old == [row.old_logprobs for row in rows()]


def test_microbatches_beyond_the_rows_are_dummies_so_that_ranks_have_equally_many() -> None:
    batches = microbatches(rows()[:2], 4, pad_id=0, count=3)
    assert [b.tokens.size(0) for b in batches] == [4, 4, 4]
    assert [float(b.mask.sum()) for b in batches[1:]] == [0, 0]
    with pytest.raises(ValueError, match="7 rows fill 2 microbatches of 4; 1 were asked for"):
        microbatches(rows(), 4, pad_id=0, count=1)


def test_dummies_have_the_log_probabilities_that_the_rows_of_other_ranks_have() -> None:
    assert logprob_names(rows()) == ("old_logprobs",)
    assert logprob_names([]) == ()
    (batch,) = microbatches([], 2, pad_id=0, logprobs={"old_logprobs", "rollout_logprobs"})
    assert batch.ref_logprobs is None
    for values in (batch.old_logprobs, batch.rollout_logprobs):
        assert values is not None
        assert values.shape == batch.mask.shape


def test_widths_are_padded_to_a_multiple() -> None:
    assert all(b.tokens.size(1) % 4 == 0 for b in microbatches(rows(), 3, pad_id=0, pad_to_multiple=4))


def test_nll_is_the_token_mean_over_everything() -> None:
    logprobs, mask = -torch.rand(4, 5), torch.rand(4, 5) < 0.5
    mask[0, 0] = True
    norm = Normalizer(float(mask.sum()), 4.0)
    parts = [nll_loss(logprobs[i : i + 2], mask[i : i + 2], norm).loss for i in (0, 2)]
    assert float(sum(parts)) == pytest.approx(float(-(logprobs * mask).sum() / mask.sum()), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_estimator": "k4"}, "grpo.kl_estimator='k4' must be one of: k1, k2, k3"),
        ({"aggregation": "mean"}, "grpo.aggregation='mean' must be one of: token, sequence, constant, microbatch"),
        ({"truncated": "no"}, "grpo.truncated='no' must be one of: keep, mask, drop"),
        ({"ratio_clip_low": 1.0}, "grpo.ratio_clip_low=1.0 must be in"),
        ({"minibatches": 0}, "grpo.minibatches=0 must be at least 1"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**options)  # type: ignore[arg-type]


LOGPROBS = st.lists(st.floats(-2000.0, 0.0, width=32), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(new=LOGPROBS, old=LOGPROBS, ref=LOGPROBS, rollout=LOGPROBS, config=st.sampled_from(OPTIONS), tis=st.booleans())
def test_loss_gradient_and_figures_are_finite_wherever_log_probabilities_are(
    new: list[float], old: list[float], ref: list[float], rollout: list[float], config: GRPOConfig, tis: bool
) -> None:
    theta = torch.tensor([new, new]).requires_grad_()
    told = (torch.tensor([values, values]) for values in (old, ref, rollout))
    inputs = LossInputs(theta, torch.tensor([1.5, -1.5]), trained(2, 4), *told)
    outputs = grpo_loss(inputs, replace(config, tis_clip=2.0 if tis else None), counts(trained(2, 4)))
    outputs.loss.backward()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad).all()
    assert torch.isfinite(outputs.loss)
    assert all(math.isfinite(float(total)) for total, _ in outputs.metrics.values())


@pytest.mark.parametrize("far", [89.0, 200.0, 1e4])
def test_a_log_ratio_is_cut_at_20_as_elsewhere(far: float) -> None:
    theta = torch.full((1, 1), -1.0).requires_grad_()
    inputs = LossInputs(theta, torch.tensor([-1.0]), trained(1, 1), torch.full((1, 1), -1.0 - far))
    outputs = grpo_loss(inputs, GRPOConfig(kl_beta=0.0), counts(trained(1, 1)))
    assert float(outputs.loss) == pytest.approx(math.exp(20), rel=1e-5)
    for d in (far, -far):
        at = kl_estimate(torch.tensor([0.0]), torch.tensor([d]), "k3")
        assert float(at) == pytest.approx(math.exp(math.copysign(20, d)) - math.copysign(20, d) - 1, rel=1e-5)
