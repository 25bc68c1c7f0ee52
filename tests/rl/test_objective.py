"""Every option of the objective against its published formula, written out here in float64, token by token.

docs/objective.md names these tests beside each option.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nemo_magic.rl.advantages import AdvantageInputs, Advantages, rollout_advantages
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.kl import kl_estimate, kl_of_response
from nemo_magic.rl.loss import LossInputs, grpo_loss
from nemo_magic.rl.role_baseline import RoleBaselines

Rows = list[list[float]]


class Case:
    """Log-probabilities of some responses, in float64: π_θ, π_old, π_ref, π_rollout, an entropy, and a mask."""

    def __init__(self, seed: int, rows: int = 5, width: int = 6, noise: float = 0.7) -> None:
        draw = torch.Generator().manual_seed(seed)

        def around(x: torch.Tensor) -> torch.Tensor:
            return x + noise * torch.randn(rows, width, generator=draw, dtype=torch.double)

        self.theta = -3 * torch.rand(rows, width, generator=draw, dtype=torch.double)
        self.old, self.ref = around(self.theta), around(self.theta)
        self.rollout = around(self.old)
        self.entropy = torch.rand(rows, width, generator=draw, dtype=torch.double)
        self.advantages = torch.randn(rows, generator=draw, dtype=torch.double)
        self.mask = torch.rand(rows, width, generator=draw) < 0.7
        self.mask[0] = False  # a dummy row
        self.mask[1, 2] = True

    def tokens(self, row: int) -> list[int]:
        return [t for t in range(self.mask.size(1)) if self.mask[row, t]]

    @property
    def responses(self) -> list[int]:
        return [row for row in range(self.mask.size(0)) if self.tokens(row)]

    def loss(self, config: GRPOConfig, theta: torch.Tensor | None = None) -> torch.Tensor:
        inputs = LossInputs(
            self.theta if theta is None else theta, self.advantages, self.mask, self.old, self.ref, self.rollout,
            self.entropy,
        )  # fmt: skip
        norm = Normalizer(float(self.mask.sum()), float(len(self.responses)))
        return grpo_loss(inputs, config, norm).loss


PerToken = Callable[[Case, torch.Tensor, int, int], float]


def rho(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    return math.exp(float(theta[i, t] - case.old[i, t]))


def clip(x: float, low: float = 0.2, high: float = 0.2) -> float:
    return min(max(x, 1 - low), 1 + high)


def least(x: float, advantage: float) -> float:
    return -min(x * advantage, clip(x) * advantage)


def ppo(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    return least(rho(case, theta, i, t), float(case.advantages[i]))


def dual(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    a, own = float(case.advantages[i]), ppo(case, theta, i, t)
    return min(own, -1.5 * a) if a < 0 else own


def capped(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    return least(math.exp(min(float(theta[i, t] - case.old[i, t]), 0.5)), float(case.advantages[i]))


def gspo(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    tokens = case.tokens(i)
    mean = sum(float(theta[i, k] - case.old[i, k]) for k in tokens) / len(tokens)
    return least(math.exp(mean), float(case.advantages[i]))


def cispo(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    frozen = clip(rho(case, case.theta, i, t))  # no gradient flows through the weight
    return -frozen * float(case.advantages[i]) * float(theta[i, t])


def weighted(rule: Callable[[Case, int, int], float]) -> PerToken:
    return lambda case, theta, i, t: rule(case, i, t) * ppo(case, theta, i, t)


def token_weight(case: Case, i: int, t: int) -> float:
    return math.exp(float(case.old[i, t] - case.rollout[i, t]))


def response_weight(case: Case, i: int, t: int) -> float:
    return math.exp(sum(float(case.old[i, k] - case.rollout[i, k]) for k in case.tokens(i)))


def within(x: float, low: float, high: float) -> float:
    return x if low <= x <= high else 0.0


def k3(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    d = float(case.ref[i, t] - theta[i, t])
    return math.exp(d) - d - 1


def with_kl(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    return ppo(case, theta, i, t) + 0.3 * k3(case, theta, i, t)


def with_weighted_kl(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    return ppo(case, theta, i, t) + 0.3 * rho(case, theta, i, t) * k3(case, theta, i, t)


def with_k2_gradient(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    def k2(at: torch.Tensor) -> float:
        return float(case.ref[i, t] - at[i, t]) ** 2 / 2

    return ppo(case, theta, i, t) + 0.3 * (k3(case, case.theta, i, t) + k2(theta) - k2(case.theta))


def with_entropy(case: Case, theta: torch.Tensor, i: int, t: int) -> float:
    return ppo(case, theta, i, t) - 0.1 * float(case.entropy[i, t])


def token_mean(case: Case, term: PerToken, theta: torch.Tensor) -> float:
    terms = [term(case, theta, i, t) for i in case.responses for t in case.tokens(i)]
    return sum(terms) / len(terms)


def response_means(case: Case, term: PerToken, theta: torch.Tensor) -> float:
    means = [statistics.fmean(term(case, theta, i, t) for t in case.tokens(i)) for i in case.responses]
    return statistics.fmean(means)


def constant_length(case: Case, term: PerToken, theta: torch.Tensor) -> float:
    sums = [sum(term(case, theta, i, t) for t in case.tokens(i)) for i in case.responses]
    return sum(sums) / len(sums) / 11


Mean = Callable[[Case, PerToken, torch.Tensor], float]

FORMULAS: dict[str, tuple[dict[str, object], PerToken, Mean]] = {
    "GRPO": ({}, ppo, token_mean),
    "dual clip": ({"dual_clip": 1.5}, dual, token_mean),
    "log-ratio cap": ({"max_log_ratio": 0.5}, capped, token_mean),
    "GSPO": ({"policy_loss": "gspo", "aggregation": "sequence"}, gspo, response_means),
    "CISPO": ({"policy_loss": "cispo"}, cispo, token_mean),
    "sequence mean": ({"aggregation": "sequence"}, ppo, response_means),
    "Dr. GRPO constant length": ({"aggregation": "constant", "constant_length": 11}, ppo, constant_length),
    "one microbatch": ({"aggregation": "microbatch"}, ppo, token_mean),
    "TIS": ({"tis_clip": 1.3}, weighted(lambda c, i, t: min(token_weight(c, i, t), 1.3)), token_mean),
    "IcePop": (
        {"tis_clip": 2.0, "tis_mode": "token_mask", "tis_low": 0.5},
        weighted(lambda c, i, t: within(token_weight(c, i, t), 0.5, 2.0)), token_mean,
    ),
    "sequence TIS": (
        {"tis_clip": 1.3, "tis_mode": "sequence"},
        weighted(lambda c, i, t: min(response_weight(c, i, t), 1.3)), token_mean,
    ),
    "sequence mask": (
        {"tis_clip": 4.0, "tis_mode": "sequence_mask", "tis_low": 0.25},
        weighted(lambda c, i, t: within(response_weight(c, i, t), 0.25, 4.0)), token_mean,
    ),
    "KL in the loss": ({"kl_beta": 0.3}, with_kl, token_mean),
    "KL with the gradient of k2": ({"kl_beta": 0.3, "kl_gradient": "k2"}, with_k2_gradient, token_mean),
    "KL weighted by the ratio": ({"kl_beta": 0.3, "kl_gradient": "weighted"}, with_weighted_kl, token_mean),
    "entropy bonus": ({"entropy_bonus": 0.1}, with_entropy, token_mean),
}  # fmt: skip
"""Name → options, loss per token, and the mean of it: the formulas of the papers."""


@pytest.mark.parametrize("name", FORMULAS)
def test_an_option_has_the_loss_and_the_gradient_of_its_formula(name: str) -> None:
    options, term, mean = FORMULAS[name]
    config = GRPOConfig(**options)  # type: ignore[arg-type]
    differences = []
    for seed in range(4):
        case = Case(seed)
        theta = case.theta.clone().requires_grad_()
        loss = case.loss(config, theta)
        loss.backward()
        differences.append(abs(float(loss) - mean(case, term, case.theta)))
        assert theta.grad is not None
        assert torch.all(theta.grad[~case.mask] == 0)
        step = 1e-6
        for i, t in ((1, 2), (2, case.tokens(2)[0]), (3, case.tokens(3)[-1]), (4, case.tokens(4)[0])):
            up, down = case.theta.clone(), case.theta.clone()
            up[i, t] += step
            down[i, t] -= step
            slope = (mean(case, term, up) - mean(case, term, down)) / (2 * step)
            differences.append(abs(float(theta.grad[i, t]) - slope))
    # Sums are in float32; slopes are finite differences.
    assert max(differences) < 2e-6, differences


@pytest.mark.parametrize("name", ["IcePop", "sequence mask", "sequence TIS", "dual clip", "log-ratio cap"])
def test_a_bound_of_these_cases_is_reached(name: str) -> None:
    """Otherwise the comparison above would not see it."""
    options, *_ = FORMULAS[name]
    plain = [float(Case(seed).loss(GRPOConfig())) for seed in range(4)]
    bounded = [float(Case(seed).loss(GRPOConfig(**options))) for seed in range(4)]  # type: ignore[arg-type]
    assert all(a != b for a, b in zip(plain, bounded, strict=True))


def test_the_entropy_bonus_has_a_gradient_in_the_entropy() -> None:
    case = Case(1)
    case.entropy.requires_grad_()
    case.loss(GRPOConfig(entropy_bonus=0.1)).backward()
    assert case.entropy.grad is not None
    expected = torch.where(case.mask, -0.1 / float(case.mask.sum()), 0.0)
    assert torch.allclose(case.entropy.grad, expected.double())


def test_the_microbatch_mean_weighs_each_microbatch_by_its_responses() -> None:
    case, config = Case(3, rows=7), GRPOConfig(aggregation="microbatch")
    norm = Normalizer(float(case.mask.sum()), float(len(case.responses)))
    parts, expected = [], 0.0
    for rows in (slice(0, 3), slice(3, 7)):
        inputs = LossInputs(case.theta[rows], case.advantages[rows], case.mask[rows], case.old[rows])
        parts.append(float(grpo_loss(inputs, config, norm).loss))
        numbers = [i for i in case.responses if rows.start <= i < rows.stop]
        terms = [ppo(case, case.theta, i, t) for i in numbers for t in case.tokens(i)]
        expected += statistics.fmean(terms) * len(numbers) / len(case.responses)
    assert sum(parts) == pytest.approx(expected, abs=1e-6)


def test_without_old_log_probabilities_every_policy_term_has_the_gradient_of_the_policy_gradient() -> None:
    case = Case(2)
    norm = Normalizer(float(case.mask.sum()), float(len(case.responses)))
    for options in ({}, {"policy_loss": "cispo"}, {"policy_loss": "gspo", "aggregation": "sequence"}):
        config = GRPOConfig(**options)  # type: ignore[arg-type]
        theta = case.theta.clone().requires_grad_()
        grpo_loss(LossInputs(theta, case.advantages, case.mask), config, norm).loss.backward()
        lengths = case.mask.sum(dim=1, keepdim=True).clamp(min=1)
        scale = lengths * norm.sequences if config.aggregation == "sequence" else torch.tensor(norm.tokens)
        expected = torch.where(case.mask, -case.advantages[:, None] / scale, 0.0)
        assert theta.grad is not None
        assert torch.allclose(theta.grad, expected, atol=1e-7), options


# --- advantages


def groups_of(seed: int, size: int = 4, groups: int = 30) -> tuple[list[list[float]], AdvantageInputs]:
    draw = random.Random(seed)
    rewards = [[draw.choice((-1.5, -0.5, 0.5, 1.5)) for _ in range(size)] for _ in range(groups)]
    rewards[3] = [0.5] * size
    flat = torch.tensor([r for group in rewards for r in group])
    numbers = torch.tensor([g for g in range(groups) for _ in range(size)])
    every = torch.ones(len(flat), dtype=torch.bool)
    return rewards, AdvantageInputs(flat, numbers, every, ~every)


def by_group(advantages: Advantages, size: int = 4) -> list[list[float]]:
    return advantages.values.reshape(-1, size).tolist()


@pytest.mark.parametrize("std", ["population", "sample"])
def test_the_standard_deviation_is_the_one_that_is_named(std: str) -> None:
    rewards, inputs = groups_of(1)
    measure = statistics.pstdev if std == "population" else statistics.stdev
    for group, found in zip(rewards, by_group(rollout_advantages(inputs, GRPOConfig(std=std))), strict=True):
        spread = measure(group)
        expected = [(r - statistics.fmean(group)) / spread if spread else 0.0 for r in group]
        assert found == pytest.approx(expected, abs=1e-6)


def test_the_leave_one_out_baseline_is_the_mean_of_the_others() -> None:
    rewards, inputs = groups_of(2)
    config = GRPOConfig(baseline="leave_one_out", scale_by_std=False)
    for group, found in zip(rewards, by_group(rollout_advantages(inputs, config)), strict=True):
        expected = [r - statistics.fmean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)]
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_roles_baseline_is_a_moving_average_of_what_came_before() -> None:
    draw = random.Random(3)
    rewards = [(draw.choice(("defender/harmful", "attacker/harmful")), draw.uniform(-2, 2)) for _ in range(200)]
    before, after = RoleBaselines().after(rewards, 0.9)
    for n in (0, 1, 7, 150, 199):
        past = [r for key, r in rewards[:n] if key == rewards[n][0]]
        # The average written out: Σ (1 − γ) γ^k r over the past, the latest first.
        expected = sum(0.1 * 0.9**k * r for k, r in enumerate(reversed(past)))
        assert before[n] == pytest.approx(expected, abs=1e-12)
    again, continued = RoleBaselines(after.values).after(rewards[:5], 0.9)
    whole, _ = RoleBaselines().after(rewards + rewards[:5], 0.9)
    assert before + again == whole
    assert continued != after


def test_with_the_roles_baseline_a_group_without_spread_teaches_too() -> None:
    _, inputs = groups_of(4)
    inputs = AdvantageInputs(
        inputs.rewards, inputs.groups, inputs.has_reward, inputs.truncated, torch.full_like(inputs.rewards, 0.25)
    )
    advantages = rollout_advantages(inputs, GRPOConfig(baseline="role", scale_by_std=False))
    assert advantages.live.all()
    assert advantages.teaching.all()
    assert torch.equal(advantages.values, inputs.rewards - 0.25)
    with pytest.raises(ValueError, match="needs the role's baselines"):
        rollout_advantages(groups_of(4)[1], GRPOConfig(baseline="role", scale_by_std=False))


@pytest.mark.parametrize("no_spread", ["drop", "keep"])
def test_groups_without_spread_leave_what_the_option_says(no_spread: str) -> None:
    rewards, inputs = groups_of(5)
    advantages = rollout_advantages(inputs, GRPOConfig(no_spread=no_spread))
    flat = [len(set(group)) > 1 for group in rewards for _ in group]
    assert False in flat
    assert advantages.teaching.tolist() == flat
    assert advantages.live.tolist() == ([True] * len(flat) if no_spread == "keep" else flat)
    assert all(value == 0 for value, spread in zip(advantages.values.tolist(), flat, strict=True) if not spread)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_that_a_reward_loses_is_the_sum_over_the_response(estimator: str) -> None:
    draw = random.Random(6)
    old, ref = (tuple(draw.uniform(-4, 0) for _ in range(9)) for _ in range(2))
    formula = {"k1": lambda d: -d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(d) - d - 1}[estimator]
    expected = sum(formula(r - o) for o, r in zip(old, ref, strict=True))
    assert kl_of_response(old, ref, estimator) == pytest.approx(expected, abs=1e-12)


def test_the_two_unbiased_gradients_are_the_gradient_of_the_kl_and_those_of_k1_and_k3_are_not() -> None:
    """Over a small vocabulary expectations are sums: no sampling is needed to see which gradient is which."""
    logits = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.double, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.9, 0.1, -0.4, 0.2], dtype=torch.double), 0)
    theta = torch.log_softmax(logits, 0)
    (true,) = torch.autograd.grad((theta.exp() * (theta - ref)).sum(), logits, retain_graph=True)
    weights = theta.exp().detach()

    def gradient(estimate: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((weights * estimate).sum(), logits, retain_graph=True)[0]

    ratio = (theta - theta.detach()).exp()
    assert torch.allclose(gradient(kl_estimate(theta, ref, "k2")), true, atol=1e-12)
    assert torch.allclose(gradient(ratio * kl_estimate(theta, ref, "k3")), true, atol=1e-12)
    assert torch.allclose(gradient(ratio * kl_estimate(theta, ref, "k1")), true, atol=1e-12)
    assert torch.allclose(gradient(kl_estimate(theta, ref, "k1")), torch.zeros(4).double(), atol=1e-12)
    (reverse,) = torch.autograd.grad((ref.exp() * (ref - theta)).sum(), logits, retain_graph=True)
    assert torch.allclose(gradient(kl_estimate(theta, ref, "k3")), reverse, atol=1e-12)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "role"}, "grpo.baseline=role does not divide by a standard deviation"),
        ({"baseline": "role", "scale_by_std": False, "refill_rounds": 1}, "set grpo.refill_rounds=0"),
        ({"policy_loss": "gspo"}, "grpo.policy_loss=gspo is a mean over responses"),
        ({"policy_loss": "cispo", "dual_clip": 3.0}, "grpo.dual_clip=3.0 is a bound of grpo.policy_loss=clip"),
        ({"aggregation": "constant"}, "a length is needed where grpo.aggregation=constant"),
        ({"constant_length": 100}, "read nowhere else"),
        ({"tis_mode": "token_mask"}, "grpo.tis_clip=null has none of"),
        ({"tis_clip": 2.0, "tis_low": 0.5}, "set grpo.tis_mode=token_mask or sequence_mask"),
        ({"kl_in": "reward"}, "grpo.kl_beta=0: give it a weight"),
        ({"kl_beta": 0.1, "kl_in": "reward", "kl_gradient": "k2"}, "a reward has no gradient"),
        ({"reference_every": 1}, "a reference that grpo.kl_beta=0 does not keep"),
        ({"kl_beta": 0.1, "reference_mix": 0.5}, "set grpo.reference_every"),
        ({"dual_clip": 1.0}, "grpo.dual_clip=1.0 must be greater than 1"),
        ({"max_log_ratio": 21.0}, "grpo.max_log_ratio=21.0 must be above 0 and at most 20"),
        ({"std": "none"}, "grpo.std='none' must be one of: population, sample"),
    ],
)
def test_options_that_have_no_meaning_together_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**options)  # type: ignore[arg-type]


def test_the_page_of_the_objective_names_every_formula_that_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf-8")
    assert [name for name in FORMULAS if name not in page] == []
