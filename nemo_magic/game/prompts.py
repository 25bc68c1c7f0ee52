"""What each role is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from nemo_magic.game.episode import Message, Seed

Chat = tuple[Message, ...]


@dataclass
class PromptConfig:
    """The roles' instructions.

    ``attacker_user`` is a template: ``{seed}`` and ``{label}`` are replaced, nothing else is. In conversations of more
    than one turn, ``attacker_system_turns`` takes the place of ``attacker_system`` (null: the same), and the attacker
    is told the defender's replies by ``attacker_reply``, in which ``{reply}`` is replaced.
    """

    attacker_system: str = ""
    attacker_user: str = "{label} : {seed}"
    attacker_system_turns: str | None = None
    attacker_reply: str = "{reply}"
    defender_system: str = ""

    def __post_init__(self) -> None:
        for key, place in (("attacker_user", "{seed}"), ("attacker_reply", "{reply}")):
            if place not in getattr(self, key):
                raise ValueError(f"game.prompts.{key}={getattr(self, key)!r} must contain {place}")


def attacker_messages(
    prompts: PromptConfig, seed: Seed, past: Sequence[tuple[str, str]] = (), max_turns: int = 1
) -> Chat:
    """The chat that asks the attacker to rewrite ``seed``; ``past`` holds what it wrote, reasoning included, and what
    the defender replied, turn by turn."""
    turns = max_turns > 1 and prompts.attacker_system_turns is not None
    system = (prompts.attacker_system_turns or "") if turns else prompts.attacker_system
    # One pass over the template, so that braces in a user's own seed text stay text.
    text = prompts.attacker_user.replace("{label}", seed.label.value).replace("{seed}", seed.text)
    told = (
        (Message("assistant", wrote), Message("user", prompts.attacker_reply.replace("{reply}", reply)))
        for wrote, reply in past
    )
    return (*_system(system), Message("user", text), *chain.from_iterable(told))


def defender_messages(prompts: PromptConfig, rewrite: str, past: Sequence[tuple[str, str]] = ()) -> Chat:
    """The chat in which the defender answers: the rewrites it has seen, what it replied (``past``), and the latest
    rewrite. It sees nothing of the seed or the reasoning."""
    seen = ((Message("user", shown), Message("assistant", reply)) for shown, reply in past)
    return (*_system(prompts.defender_system), *chain.from_iterable(seen), Message("user", rewrite))


def _system(text: str) -> Chat:
    return (Message("system", text),) if text else ()
