"""docs/metrics.md is the one place where a metric's name is explained; nothing is measured under another name."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from nemo_magic.game.episode import Answer, Completion, Episode, Label, Role, Safety, Seed, Turn, Verdict
from nemo_magic.game.metrics import Scored, rollout_metrics
from nemo_magic.game.rewards import RewardConfig, attacker_reward, defender_reward
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.loss import LossInputs, grpo_loss

DOCUMENTED = set(re.findall(r"`([^`]+)`", (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")))


def pattern(name: str) -> str:
    name = re.sub(r"_(attacker|defender)$", "_<role>", name)
    return re.sub(r"^reward_[a-z]+_<role>$", "reward_<part>_<role>", name)


def test_every_figure_of_a_rollout_is_documented() -> None:
    config = RewardConfig(help=1.0, intent_gate=True)
    verdict = Verdict("v", Safety.SAFE, Safety.SAFE, Answer.NO, Answer.YES, Answer.YES)
    said = Completion((1,), (2,), (-0.5,), "x", True)
    games = []
    for label in Label:
        seed = Seed("s", "q", label)
        paid = {
            Role.DEFENDER: defender_reward(config, seed, verdict),
            Role.ATTACKER: attacker_reward(config, seed, verdict, format_ok=True),
        }
        rewards = {role: reward.parts for role, reward in paid.items() if reward is not None}
        games.append(Scored(Episode(seed, 0, 0, (Turn("r", True, said, said),)), verdict, rewards))
    found = {pattern(name) for name in rollout_metrics(games).means()}
    assert {"asr", "useful", "reward_<part>_<role>"} <= found
    assert found <= DOCUMENTED, found - DOCUMENTED


def test_every_figure_of_an_update_is_documented() -> None:
    inputs = LossInputs(logprobs=torch.zeros(1, 2), advantages=torch.ones(1), mask=torch.zeros(1, 2) == 0)
    found = set(grpo_loss(inputs, GRPOConfig(), Normalizer(2.0, 1.0)).metrics)
    assert found
    assert found <= DOCUMENTED, found - DOCUMENTED
