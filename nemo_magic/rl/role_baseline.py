"""``grpo.baseline=role``: role-conditioned advantage estimation (RAE; SPIRAL, arXiv 2506.24119)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RoleBaselines:
    """A moving average of rewards for each role of each game, 0 before the first.

    ``A = r − b``, then ``b ← γ b + (1 − γ) r``, sample by sample: a sample is compared with what came before it. A key
    is a role and a seed's label, for a benign seed is another game than a harmful one.
    """

    values: Mapping[str, float] = field(default_factory=dict)

    def after(self, rewards: Sequence[tuple[str, float]], decay: float) -> tuple[list[float], RoleBaselines]:
        """The baseline of each (key, reward), in their order, and the baselines that they leave."""
        values = dict(self.values)
        before = []
        for key, reward in rewards:
            before.append(values.get(key, 0.0))
            values[key] = decay * before[-1] + (1 - decay) * reward
        return before, RoleBaselines(values)
