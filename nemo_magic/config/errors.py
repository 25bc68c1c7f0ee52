"""What a wrong configuration raises."""


class ConfigError(ValueError):
    """The configuration cannot be run; the message names the keys, their values and what would be right."""
