"""What can be set about warm-up and about what a run leaves behind. Imports neither torch nor NeMo."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ROLES = ("attacker", "defender", "both")
WANDB_MODES = ("offline", "online", "disabled")


@dataclass
class SFTConfig:
    """Phase 1: supervised warm-up of one role, loss on completion tokens only.

    ``role`` learns from ``pool`` (jsonl or parquet) for ``max_steps`` optimizer steps of ``batch_size`` rows, counted
    over all ranks. ``both``: one model, the defender's, learns to play both roles; half of each batch is attacks from
    ``pool``, half chats from ``defender_pool``. Every ``val_check_interval`` steps the loss is measured on up to
    ``num_val_samples`` rows of ``val_pool``; null means no validation.
    """

    role: str = "attacker"
    pool: str | None = None
    defender_pool: str | None = None
    val_pool: str | None = None
    max_steps: int = 300
    batch_size: int = 128
    val_check_interval: int = 50
    num_val_samples: int = 256

    @property
    def model_role(self) -> str:
        """The role whose model settings and weights are meant."""
        return "defender" if self.role == "both" else self.role

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"sft.role={self.role!r} must be one of: {', '.join(ROLES)}")
        for key in ("max_steps", "batch_size", "val_check_interval", "num_val_samples"):
            if getattr(self, key) < 1:
                raise ValueError(f"sft.{key}={getattr(self, key)} must be at least 1")
        if self.role == "both" and self.batch_size % 2:
            raise ValueError(f"sft.batch_size={self.batch_size} must be even: half of it is from either pool")
        if self.role == "both" and self.val_pool is not None:
            raise ValueError(f"sft.val_pool={self.val_pool!r} is of one role's rows: set it to null with sft.role=both")
        if self.role != "both" and self.defender_pool is not None:
            raise ValueError(f"sft.defender_pool={self.defender_pool!r} is read with sft.role=both only: use sft.pool")


@dataclass
class WandbConfig:
    """Keyword arguments of ``wandb.init``; offline unless asked otherwise."""

    project: str = "nemo-magic"
    name: str | None = None
    mode: str = "offline"
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in WANDB_MODES:
            raise ValueError(
                f"exp_manager.wandb_logger_kwargs.mode={self.mode!r} must be one of: {', '.join(WANDB_MODES)}"
            )


@dataclass
class CheckpointConfig:
    """Game checkpoints, in ``<run>/checkpoints``; NeMo's own key names where it has them.

    One is saved every ``every_n_train_steps`` steps and at the end, in the background (``async_save``), and counts once
    it is durable. The last ``keep_last`` stay, and the one with the best value of the metric ``monitor`` (null: none;
    ``mode``: min or max), to which the link ``best`` points.
    """

    every_n_train_steps: int = 15
    keep_last: int = 2
    monitor: str | None = None
    mode: str = "min"
    async_save: bool = True

    def __post_init__(self) -> None:
        for key in ("every_n_train_steps", "keep_last"):
            if getattr(self, key) < 1:
                raise ValueError(
                    f"exp_manager.checkpoint_callback_params.{key}={getattr(self, key)} must be at least 1"
                )
        if self.mode not in ("min", "max"):
            raise ValueError(f"exp_manager.checkpoint_callback_params.mode={self.mode!r} must be one of: min, max")


@dataclass
class ExpManagerConfig:
    """Where a run writes, and to what it reports; NeMo's own key names.

    ``explicit_log_dir``: the run's folder. ``num_logged_samples``: conversations saved per step.
    ``log_texts``: the conversations that wandb and TensorBoard are shown have their words, which may be harmful.
    ``create_report``: ``report.html`` is written at validations, in at most two percent of the time, and at the end.
    ``max_time_per_run``: ``DD:HH:MM:SS`` after which the run saves and ends by itself, to be started again; or null.
    ``hang_timeout``: seconds without any part of a step beginning or ending after which the run ends with status 70,
    every rank's place and stack in ``<run>/hangs``; null: nobody watches. It has to be longer than the longest part
    (attacks written ahead for a phase, a wait for the judge) and than a checkpoint.
    """

    explicit_log_dir: str = "runs/${name}"
    create_wandb_logger: bool = False
    wandb_logger_kwargs: WandbConfig = field(default_factory=WandbConfig)
    create_tensorboard_logger: bool = True
    create_report: bool = True
    num_logged_samples: int = 8
    log_texts: bool = False
    max_time_per_run: str | None = None
    hang_timeout: float | None = None
    checkpoint_callback_params: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def max_seconds(self) -> float | None:
        """``max_time_per_run`` in seconds."""
        if self.max_time_per_run is None:
            return None
        days, hours, minutes, seconds = map(int, self.max_time_per_run.split(":"))
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    def __post_init__(self) -> None:
        if not self.explicit_log_dir:
            raise ValueError("exp_manager.explicit_log_dir is empty: name the folder the run writes to")
        if self.num_logged_samples < 0:
            raise ValueError(f"exp_manager.num_logged_samples={self.num_logged_samples} must be at least 0")
        if self.hang_timeout is not None and not self.hang_timeout > 0:
            raise ValueError(f"exp_manager.hang_timeout={self.hang_timeout} must be greater than 0, or null")
        if self.max_time_per_run is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time_per_run):
            raise ValueError(f"exp_manager.max_time_per_run={self.max_time_per_run!r} must read DD:HH:MM:SS or be null")
