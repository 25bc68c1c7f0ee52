"""Ours beside the loss and advantage functions of verl and of the published code, called as they stand.

    git clone https://github.com/volcengine/verl && git -C verl checkout b178a3cd5
    git clone https://github.com/BattleWen/MAGIC && git -C MAGIC checkout b34d91a
    python benchmarks/objective_peers.py --verl verl --magic MAGIC [--draws 400] [--record FILE]

Prints the table of docs/objective.md: the largest differences over the draws. ``--record`` writes inputs, losses and
gradients of the first draws as numbers, which tests/rl/test_objective_peers.py compares with ours. What the peers'
files import beside torch and numpy is replaced by empty modules.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import table

from nemo_magic.rl.advantages import AdvantageInputs, rollout_advantages
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.loss import LossInputs, grpo_loss

ROWS, WIDTH, GROUP, GROUPS = 5, 6, 4, 8
RECORDED = 4
KL_BETA, LENGTH = 0.3, 11
VERL_FILES = ("trainer/ppo/core_algos.py", "trainer/ppo/rollout_corr_helper.py", "utils/torch_functional.py",
              "utils/import_utils.py")  # fmt: skip


class _Empty(types.ModuleType):
    """A module that has any class that it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return self.__dict__[name]


class _Peer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``files`` of the package ``verl`` below ``root``, and empty modules for all else of it and tensordict."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._paths = {"verl." + name.removesuffix(".py").replace("/", "."): root / name for name in files}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in self._paths:
            return importlib.util.spec_from_file_location(name, self._paths[name])
        if name.partition(".")[0] in ("verl", "tensordict"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load(root: Path, files: Sequence[str], wanted: Sequence[str]) -> list[Any]:
    """Modules of a peer's own ``verl``; nothing of it stays importable."""
    finder = _Peer(root, files)
    sys.meta_path.insert(0, finder)
    try:
        return [importlib.import_module(name) for name in wanted]
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("verl", "tensordict")]:
            del sys.modules[name]


@dataclass
class Draw:
    """Log-probabilities [rows, width] under π_θ, π_old, π_ref and π_rollout, advantages [rows], and a mask. Row 0 is a
    dummy."""

    theta: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    rollout: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, seed: int) -> Draw:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, spread: float = 0.7) -> torch.Tensor:
            return spread * torch.randn(*shape, generator=generator, dtype=torch.double)

        theta = -3 * torch.rand(ROWS, WIDTH, generator=generator, dtype=torch.double)
        old = theta + normal(ROWS, WIDTH, spread=1.0)
        # Up to 1 nat: beyond 2.6 verl cuts k3.
        ref = theta + normal(ROWS, WIDTH).clamp(-1, 1)
        mask = torch.rand(ROWS, WIDTH, generator=generator) < 0.7
        mask[0], mask[1:, 2] = False, True
        return cls(theta, old, ref, old + normal(ROWS, WIDTH), normal(ROWS, spread=1.0), mask)

    @property
    def responses(self) -> float:
        return float((self.mask.sum(dim=1) > 0).sum())


Peer = Callable[[Draw, torch.Tensor], torch.Tensor]
"""(draw, log-probabilities that have a gradient) → the peer's loss."""


def peers(verl: Any, correction: Any, magic: Any) -> dict[str, tuple[dict[str, Any], str, Peer]]:
    """Option → keys of ``grpo``, what the peer's function is called, and its loss."""
    config = type(
        "Config",
        (verl.ActorConfig,),
        {
            "clip_ratio": 0.2, "clip_ratio_low": None, "clip_ratio_high": None, "global_batch_info": {},
            "get": lambda self, key, default=None: getattr(self, key, default),
        },
    )  # fmt: skip

    def call(name: str, d: Draw, theta: torch.Tensor, mode: str = "token-mean", dual: float = 1e9, **more: Any) -> Any:
        own = config()
        own.clip_ratio_c = dual
        advantages = d.advantages[:, None].expand_as(theta)
        function = getattr(verl, f"compute_policy_loss_{name}")
        return function(d.old, theta, advantages, d.mask.double(), mode, own, **more)[0]

    def vanilla(d: Draw, theta: torch.Tensor, **more: Any) -> torch.Tensor:
        loss: torch.Tensor = call("vanilla", d, theta, **more)
        return loss

    def weights(level: str, bound: float) -> Peer:
        def loss(d: Draw, theta: torch.Tensor) -> torch.Tensor:
            ratio = d.old - d.rollout
            factor, _ = correction.compute_rollout_correction_weights(ratio, d.mask.double(), level, bound)
            return vanilla(d, theta, rollout_is_weights=factor)

        return loss

    def masked(rule: str, low: float, high: float) -> Peer:
        # The bounds there are of π_rollout / π_old. What is kept has the weight π_old / π_rollout.
        def loss(d: Draw, theta: torch.Tensor) -> torch.Tensor:
            mask, ratio = d.mask.double(), d.old - d.rollout
            kept, _ = correction.compute_rollout_rejection_mask(ratio, mask, rule, f"{1 / high}_{1 / low}")
            level = "sequence" if rule.startswith("seq") else "token"
            factor, _ = correction.compute_rollout_correction_weights(ratio, mask, level, 1e9)
            return vanilla(d, theta, rollout_is_weights=factor * kept)

        return loss

    def with_kl(estimator: str) -> Peer:
        def loss(d: Draw, theta: torch.Tensor) -> torch.Tensor:
            kl = verl.agg_loss(verl.kl_penalty(theta, d.ref, estimator), d.mask.double(), "token-mean")
            return vanilla(d, theta) + KL_BETA * kl

        return loss

    def constant(d: Draw, theta: torch.Tensor) -> torch.Tensor:
        own = config()
        own.clip_ratio_c, own.global_batch_info = 1e9, {"loss_scale_factor": LENGTH}
        advantages = d.advantages[:, None].expand_as(theta)
        arguments = (d.old, theta, advantages, d.mask.double(), "seq-mean-token-sum-norm", own)
        loss: torch.Tensor = verl.compute_policy_loss_vanilla(*arguments)[0] / d.responses
        return loss

    def published(d: Draw, theta: torch.Tensor, cap: float = 3.0, dual: float = 3.0) -> torch.Tensor:
        advantages, bounds = d.advantages[:, None].expand_as(theta), {"clip_ratio_c": dual, "log_ratio_clip_c": cap}
        arguments = (d.old, theta, advantages, d.mask.double(), None, 0.2)
        loss: torch.Tensor = magic.compute_policy_loss(*arguments, **bounds)[0]
        return loss

    sequence = {"aggregation": "sequence"}
    return {
        "GRPO": ({}, "verl `compute_policy_loss_vanilla`", vanilla),
        "dual clip": ({"dual_clip": 1.5}, "the same", lambda d, t: vanilla(d, t, dual=1.5)),
        "sequence mean": (sequence, "the same, `seq-mean-token-mean`",
                          lambda d, t: vanilla(d, t, mode="seq-mean-token-mean")),
        "Dr. GRPO constant length": ({"aggregation": "constant", "constant_length": LENGTH},
                                     "the same, `seq-mean-token-sum-norm`, ÷ S", constant),
        "GSPO": (sequence | {"policy_loss": "gspo"}, "verl `compute_policy_loss_gspo`",
                 lambda d, t: call("gspo", d, t)),
        "CISPO": ({"policy_loss": "cispo"}, "verl `compute_policy_loss_cispo`", lambda d, t: call("cispo", d, t)),
        "log-ratio cap": ({"max_log_ratio": 0.5}, "the published `compute_policy_loss`",
                          lambda d, t: published(d, t, 0.5, 1e9)),
        "the published settings": ({"max_log_ratio": 3.0, "dual_clip": 3.0}, "the same", published),
        **{f"KL in the loss, {name}": ({"kl_beta": KL_BETA, "kl_estimator": name}, "verl `kl_penalty`", with_kl(name))
           for name in ("k1", "k2", "k3")},
        "TIS": ({"tis_clip": 1.3}, "verl `compute_rollout_correction_weights`, `token`", weights("token", 1.3)),
        "sequence TIS": ({"tis_clip": 1.3, "tis_mode": "sequence"}, "the same, `sequence`", weights("sequence", 1.3)),
        "IcePop": ({"tis_clip": 2.0, "tis_mode": "token_mask", "tis_low": 0.5},
                   "verl `compute_rollout_rejection_mask`, `token_k1`", masked("token_k1", 0.5, 2.0)),
        "sequence mask": ({"tis_clip": 4.0, "tis_mode": "sequence_mask", "tis_low": 0.25},
                          "the same, `seq_sum_k1`", masked("seq_sum_k1", 0.25, 4.0)),
    }  # fmt: skip


def ours(d: Draw, options: dict[str, Any], theta: torch.Tensor) -> torch.Tensor:
    inputs = LossInputs(theta, d.advantages, d.mask, d.old, d.ref, d.rollout)
    return grpo_loss(inputs, GRPOConfig(**options), Normalizer(float(d.mask.sum()), d.responses)).loss


def both(loss: Callable[[torch.Tensor], torch.Tensor], theta: torch.Tensor) -> tuple[float, torch.Tensor]:
    """A loss and its gradient."""
    theta = theta.clone().requires_grad_()
    value = loss(theta)
    value.backward()
    assert theta.grad is not None
    return value.item(), theta.grad


def rewards_of(seed: int) -> torch.Tensor:
    """[groups · group], halves between −1.5 and 1.5; one group is without spread."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 4, (GROUPS, GROUP), generator=generator).double() - 1.5
    rewards[3] = 0.5
    return rewards.flatten()


def advantage_rules(verl: Any, magic: Any) -> dict[str, tuple[dict[str, Any], str, Callable[[torch.Tensor], Any]]]:
    """Option → keys of ``grpo``, the peer's function, and its advantages."""
    index = np.repeat(np.arange(GROUPS), GROUP)

    def asked(function: Callable[..., Any], **more: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda rewards: function(rewards[:, None].clone(), torch.ones(len(rewards), 1), index, **more)[0][:, 0]

    sample, unscaled = {"std": "sample"}, {"scale_by_std": False}
    return {
        "group mean, sample std": (sample, "verl `compute_grpo_outcome_advantage`",
                                   asked(verl.compute_grpo_outcome_advantage)),
        "group mean, sample std, published": (sample, "the published `compute_grpo_outcome_advantage`",
                                              asked(magic.compute_grpo_outcome_advantage)),
        "group mean without std": (unscaled, "verl, `norm_adv_by_std_in_grpo=False`",
                                   asked(verl.compute_grpo_outcome_advantage, norm_adv_by_std_in_grpo=False)),
        "leave-one-out": ({"baseline": "leave_one_out", "scale_by_std": False}, "verl `compute_rloo_outcome_advantage`",
                          asked(verl.compute_rloo_outcome_advantage)),
    }  # fmt: skip


def our_advantages(rewards: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    every = torch.ones(len(rewards), dtype=torch.bool)
    groups = torch.arange(GROUPS).repeat_interleave(GROUP)
    return rollout_advantages(AdvantageInputs(rewards.float(), groups, every, ~every), GRPOConfig(**options)).values


def numbers(tensor: torch.Tensor) -> Any:
    return [numbers(one) for one in tensor] if tensor.dim() else float(f"{float(tensor):.12g}")


def main() -> None:
    """Compare, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verl", type=Path, required=True, help="a checkout of verl")
    parser.add_argument("--magic", type=Path, required=True, help="a checkout of the published code")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--record", type=Path, help="write the first draws' numbers as JSON")
    args = parser.parse_args()
    algorithms = "verl.trainer.ppo.core_algos"
    verl, correction = load(args.verl / "verl", VERL_FILES, [algorithms, "verl.trainer.ppo.rollout_corr_helper"])
    root = args.magic / "src" / "verl" / "verl"
    files = ["separated_trainer/ppo/core_algos.py", "utils/torch_functional.py"]
    (magic,) = load(root, files, ["verl.separated_trainer.ppo.core_algos"])
    draws = [Draw.of(seed) for seed in range(args.draws)]
    record: dict[str, Any] = {"draws": [{k: numbers(v) for k, v in vars(d).items()} for d in draws[:RECORDED]]}
    record |= {"losses": {}, "advantages": {}}
    lines: list[list[object]] = []
    for name, (options, peer, loss) in peers(verl, correction, magic).items():
        mine = [both(partial(ours, d, options), d.theta) for d in draws]
        theirs = [both(partial(loss, d), d.theta) for d in draws]
        losses = [abs(a[0] - b[0]) for a, b in zip(mine, theirs, strict=True)]
        gradients = [float((a[1] - b[1]).abs().max()) for a, b in zip(mine, theirs, strict=True)]
        lines.append([name, peer, f"{max(losses):.1e}", f"{max(gradients):.1e}"])
        found = [{"loss": float(f"{value:.12g}"), "gradient": numbers(slope)} for value, slope in theirs[:RECORDED]]
        record["losses"][name] = {"options": options, "draws": found}
    rewards = [rewards_of(seed) for seed in range(args.draws)]
    record["rewards"] = [numbers(one) for one in rewards[:RECORDED]]
    for name, (options, peer, rule) in advantage_rules(verl, magic).items():
        given = [rule(one) for one in rewards]
        far = [our_advantages(one, options) - own for one, own in zip(rewards, given, strict=True)]
        lines.append([name, peer, f"{max(float(one.abs().max()) for one in far):.1e}", ""])
        record["advantages"][name] = {"options": options, "draws": [numbers(one) for one in given[:RECORDED]]}
    print(table(["option", "peer", "loss or advantage", "gradient"], lines))
    if args.record is not None:
        args.record.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
