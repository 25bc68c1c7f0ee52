"""The chat that each role reads."""

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
    reads the defender's replies as ``attacker_reply``, in which ``{reply}`` is replaced.
    """

    attacker_system: str = ""
    attacker_user: str = "{label} : {seed}"
    attacker_system_turns: str | None = None
    attacker_reply: str = "{reply}"
    defender_system: str = ""

    def __post_init__(self) -> None:
        for key, field in (("attacker_user", "{seed}"), ("attacker_reply", "{reply}")):
            if field not in getattr(self, key):
                raise ValueError(f"game.prompts.{key}={getattr(self, key)!r} must contain {field}")


def attacker_messages(
    prompts: PromptConfig, seed: Seed, past: Sequence[tuple[str, str]] = (), max_turns: int = 1
) -> Chat:
    """The chat that asks the attacker to rewrite ``seed``.

    ``past``: (its completion, reasoning included; the defender's reply) of each earlier turn.
    """
    turns = max_turns > 1 and prompts.attacker_system_turns is not None
    system = (prompts.attacker_system_turns or "") if turns else prompts.attacker_system
    # One pass over the template, so that braces in a user's own seed text stay text.
    text = prompts.attacker_user.replace("{label}", seed.label.value).replace("{seed}", seed.text)
    turns_before = (
        (Message("assistant", completion), Message("user", prompts.attacker_reply.replace("{reply}", reply)))
        for completion, reply in past
    )
    return (*_system(system), Message("user", text), *chain.from_iterable(turns_before))


def defender_messages(prompts: PromptConfig, rewrite: str, past: Sequence[tuple[str, str]] = ()) -> Chat:
    """The chat in which the defender answers ``rewrite``; neither the seed nor the attacker's reasoning is in it.

    ``past``: (rewrite, the defender's reply) of each earlier turn.
    """
    turns_before = ((Message("user", earlier), Message("assistant", reply)) for earlier, reply in past)
    return (*_system(prompts.defender_system), *chain.from_iterable(turns_before), Message("user", rewrite))


def _system(text: str) -> Chat:
    return (Message("system", text),) if text else ()
