"""The typed configuration of a run: composed by Hydra from conf/ and overrides, checked as a whole, saved with the run.

Importing this imports neither torch nor NeMo, so that a wrong configuration is refused at once.
"""

from nemo_magic.config.composition import compose, conf_dir
from nemo_magic.config.description import describe
from nemo_magic.config.errors import ConfigError
from nemo_magic.config.parallelism import Parallelism
from nemo_magic.config.save_resolved import save_resolved, to_yaml
from nemo_magic.config.schema import (
    ActorsConfig,
    CrossPlayConfig,
    GameConfig,
    MagicConfig,
    TrainerConfig,
    optimizer_steps,
    role_model,
)
from nemo_magic.config.validation import validate

__all__ = [
    "ActorsConfig",
    "ConfigError",
    "CrossPlayConfig",
    "GameConfig",
    "MagicConfig",
    "Parallelism",
    "TrainerConfig",
    "compose",
    "conf_dir",
    "describe",
    "optimizer_steps",
    "role_model",
    "save_resolved",
    "to_yaml",
    "validate",
]
