"""The error that a wrong configuration raises."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be run; the message names the keys, their values and what would be right."""


def concise(error: Exception, above: str = "") -> str:
    """The message of Hydra or OmegaConf: the key first, with the prefix ``above``; no types, no search paths."""
    message, _, details = str(error).partition("\n")
    for line in details.splitlines():
        name, _, key = line.strip().partition(": ")
        if name == "full_key":
            return f"{above}{key}: {message}"
    return str(error).partition("Config search path")[0].strip()
