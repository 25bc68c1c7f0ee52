"""What each role is shown."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_magic.game.episode import Message, Seed


@dataclass
class PromptConfig:
    """The roles' instructions. ``attacker_user`` is a template: ``{seed}`` and ``{label}`` are replaced, nothing else
    is."""

    attacker_system: str = ""
    attacker_user: str = "{label} : {seed}"
    defender_system: str = ""

    def __post_init__(self) -> None:
        if "{seed}" not in self.attacker_user:
            raise ValueError(f"game.prompts.attacker_user={self.attacker_user!r} must contain {{seed}}")


def attacker_messages(prompts: PromptConfig, seed: Seed) -> tuple[Message, ...]:
    """The chat that asks the attacker to rewrite ``seed``."""
    # One pass over the template, so that braces in a user's own seed text stay text.
    text = prompts.attacker_user.replace("{label}", seed.label.value).replace("{seed}", seed.text)
    return (*_system(prompts.attacker_system), Message("user", text))


def defender_messages(prompts: PromptConfig, rewrite: str) -> tuple[Message, ...]:
    """The chat in which the defender answers; it sees the rewrite and nothing of the seed or the reasoning."""
    return (*_system(prompts.defender_system), Message("user", rewrite))


def _system(text: str) -> tuple[Message, ...]:
    return (Message("system", text),) if text else ()
