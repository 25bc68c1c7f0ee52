"""What can be set about warm-up and about what a run leaves behind. Imports neither torch nor NeMo."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from nemo_magic.config_checks import CheckedConfig, NonNegativeInt, OneOf, PositiveFloat, PositiveInt


@dataclass
class SFTConfig(CheckedConfig):
    """Phase 1: supervised warm-up of one role, loss on completion tokens only.

    ``role`` learns from ``pool`` (jsonl or parquet) for ``max_steps`` optimizer steps of ``batch_size`` rows, counted
    over all ranks. ``both``: one model, the defender's, learns to play both roles; half of each batch is attacks from
    ``pool``, half chats from ``defender_pool``. Every ``val_check_interval`` steps the loss is measured on up to
    ``num_val_samples`` rows of ``val_pool``; null means no validation.
    """

    KEY: ClassVar[str] = "sft"

    role: Annotated[str, OneOf("attacker", "defender", "both")] = "attacker"
    pool: str | None = None
    defender_pool: str | None = None
    val_pool: str | None = None
    max_steps: PositiveInt = 300
    batch_size: PositiveInt = 128
    val_check_interval: PositiveInt = 50
    num_val_samples: PositiveInt = 256

    @property
    def model_role(self) -> str:
        """The role whose model settings and weights are meant."""
        return "defender" if self.role == "both" else self.role

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.role == "both" and self.batch_size % 2:
            raise ValueError(f"sft.batch_size={self.batch_size} must be even: half of it is from either pool")
        if self.role == "both" and self.val_pool is not None:
            raise ValueError(f"sft.val_pool={self.val_pool!r} is of one role's rows: set it to null with sft.role=both")
        if self.role != "both" and self.defender_pool is not None:
            raise ValueError(f"sft.defender_pool={self.defender_pool!r} is read with sft.role=both only: use sft.pool")


@dataclass
class WandbConfig(CheckedConfig):
    """Keyword arguments of ``wandb.init``; offline unless asked otherwise."""

    KEY: ClassVar[str] = "exp_manager.wandb_logger_kwargs"

    project: str = "nemo-magic"
    name: str | None = None
    mode: Annotated[str, OneOf("offline", "online", "disabled")] = "offline"
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None


@dataclass
class CheckpointConfig(CheckedConfig):
    """Checkpoints of a game or a warm-up, in ``<run>/checkpoints``; NeMo's own key names where it has them.

    One is saved every ``every_n_train_steps`` steps and at a game's end, in the background (``async_save``), and counts
    once it is durable. The last ``keep_last`` stay, and the one with the best value of the metric ``monitor`` (null:
    none; ``mode``: min or max), to which the link ``best`` points.
    """

    KEY: ClassVar[str] = "exp_manager.checkpoint_callback_params"

    every_n_train_steps: PositiveInt = 15
    keep_last: PositiveInt = 2
    monitor: str | None = None
    mode: Annotated[str, OneOf("min", "max")] = "min"
    async_save: bool = True


@dataclass
class ExpManagerConfig(CheckedConfig):
    """Where a run writes, and to what it reports; NeMo's own key names.

    ``explicit_log_dir``: the run's folder. ``num_logged_samples``: conversations saved per step.
    ``log_texts``: the conversations that wandb and TensorBoard are shown have their words, which may be harmful.
    ``create_report``: ``report.html`` is written at validations, in at most two percent of the time, and at the end.
    ``max_time_per_run``: ``DD:HH:MM:SS`` after which the run saves and ends by itself, to be started again; or null.
    ``hang_timeout``: seconds without any part of a step beginning or ending after which the run ends with status 70,
    every rank's place and stack in ``<run>/hangs``; null: nobody watches. It has to be longer than the longest part
    (attacks written ahead for a phase, a wait for the judge) and than a checkpoint.
    """

    KEY: ClassVar[str] = "exp_manager"

    explicit_log_dir: str = "runs/${name}"
    create_wandb_logger: bool = False
    wandb_logger_kwargs: WandbConfig = field(default_factory=WandbConfig)
    create_tensorboard_logger: bool = True
    create_report: bool = True
    num_logged_samples: NonNegativeInt = 8
    log_texts: bool = False
    max_time_per_run: str | None = None
    hang_timeout: PositiveFloat | None = None
    checkpoint_callback_params: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def max_seconds(self) -> float | None:
        """``max_time_per_run`` in seconds."""
        if self.max_time_per_run is None:
            return None
        days, hours, minutes, seconds = map(int, self.max_time_per_run.split(":"))
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.explicit_log_dir:
            raise ValueError("exp_manager.explicit_log_dir is empty: name the folder the run writes to")
        if self.max_time_per_run is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time_per_run):
            raise ValueError(f"exp_manager.max_time_per_run={self.max_time_per_run!r} must read DD:HH:MM:SS or be null")
