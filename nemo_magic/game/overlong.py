"""A soft penalty for responses that come near their length limit, before it cuts them (DAPO, arXiv 2503.14476).

Not of the paper, and off by default (``rewards.overlong_penalty`` 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_magic.game.episode import Role
from nemo_magic.game.metrics import Scored
from nemo_magic.game.rewards import RewardConfig


def overlong_penalty(length: int, max_length: int, buffer: int, size: float) -> float:
    """What a response of ``length`` tokens loses: nothing up to ``max_length − buffer``, then more with every token,
    and ``size`` at ``max_length``."""
    return size * min(max(0.0, (length - (max_length - buffer)) / buffer), 1.0)


def with_overlong(scored: Sequence[Scored], config: RewardConfig, max_lengths: Mapping[Role, int]) -> list[Scored]:
    """The same episodes, whose rewards have one more part: ``overlong``, less than 0 where a role's longest message
    comes near its limit. A role without a limit here, without a message or without a reward has no such part."""
    result = []
    for one in scored:
        rewards = dict(one.rewards or {})
        for role, parts in rewards.items():
            lengths = [len(message.response_ids) for message in one.episode.messages_of(role)]
            if lengths and role in max_lengths:
                lost = overlong_penalty(
                    max(lengths), max_lengths[role], config.overlong_buffer, config.overlong_penalty
                )
                rewards[role] = {**parts, "overlong": -lost}
        result.append(one._replace(rewards=rewards or None))
    return result
