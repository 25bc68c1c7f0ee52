"""The folder that a command writes to: who owns it, whose results it holds, and what is kept of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from nemo_magic import launcher
from nemo_magic.config import ConfigError, MagicConfig, save_resolved
from nemo_magic.config.save_resolved import CONFIG_FILE, VERSIONS_FILE
from nemo_magic.evaluation.results import JSON_FILE
from nemo_magic.report.records import (
    ALARMS_FILE,
    ATTACKS_DIR,
    CROSS_PLAY_DIR,
    CROSSPLAY_FILE,
    METRICS_FILE,
    PICTURE_FILE,
    REPORT_FILE,
    SAMPLES_DIR,
    STRATEGIES_FILE,
)
from nemo_magic.runtime.checkpoint_paths import FOLDER as CHECKPOINTS
from nemo_magic.runtime.checkpoint_paths import SFT_WEIGHTS, SNAPSHOTS
from nemo_magic.runtime.folder_owner import FolderOwner

_RESULTS = {
    "sft": ("a warm-up", SFT_WEIGHTS),
    "train": ("a game", CHECKPOINTS),
    "evaluate": ("an evaluation", JSON_FILE),
}
"""Command → what it leaves in its folder, which the folder's config.yaml describes, and its name there."""

_SET_ASIDE = (
    METRICS_FILE, ALARMS_FILE, SAMPLES_DIR, "tensorboard", CROSSPLAY_FILE, PICTURE_FILE, REPORT_FILE, SNAPSHOTS,
    CHECKPOINTS, STRATEGIES_FILE, CROSS_PLAY_DIR, ATTACKS_DIR,
)  # fmt: skip


def own_folder(cfg: MagicConfig, folder: Path | None = None) -> AbstractContextManager[FolderOwner | None]:
    """Within the context nobody else writes to the run's folder, or to ``folder``. Enter it before anything there is
    read; only the process that speaks for the run owns it, and the others get None.

    Raises:
        ConfigError: the folder cannot be written to.
        FolderInUseError: another run, which goes on, owns it.
    """
    if not launcher.is_first_process():
        return nullcontext()
    return _owned(folder or Path(cfg.exp_manager.explicit_log_dir))


@contextmanager
def _owned(folder: Path) -> Iterator[FolderOwner]:
    with ExitStack() as stack:
        try:
            owner = stack.enter_context(FolderOwner(folder, partial(print, flush=True)))
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written to: {error.strerror or error} ({error.filename or folder}); give a folder "
                "that can (exp_manager.explicit_log_dir=...)"
            ) from error
        yield owner


def refuse_results(cfg: MagicConfig, goes_on_with: str | None) -> None:
    """Refuse a folder whose results are of another command than ``goes_on_with``: its config.yaml describes them.

    Raises:
        ConfigError: naming what it holds.
    """
    folder = Path(cfg.exp_manager.explicit_log_dir)
    for command, (what, name) in _RESULTS.items():
        if command != goes_on_with and (folder / name).exists():
            raise ConfigError(
                f"{folder} already holds the results of {what} ({name}): choose another name (name=...) or "
                "exp_manager.explicit_log_dir, or remove the folder"
            )


def describe_run(cfg: MagicConfig, begins: bool = False) -> None:
    """Write config.yaml and versions.json; where a run ``begins``, first set aside what an earlier one left."""
    folder = Path(cfg.exp_manager.explicit_log_dir)
    if begins:
        set_aside(folder)
    save_resolved(cfg, folder)


def set_aside(folder: Path) -> Path | None:
    """Move an earlier run's outputs, and the configuration that they are of, to the first free ``previous-NN/`` and
    return it; None where there were none."""
    outputs = [folder / name for name in _SET_ASIDE if (folder / name).exists()]
    if not outputs:
        return None
    number = 1
    while (target := folder / f"previous-{number:02d}").exists():
        number += 1
    target.mkdir()
    outputs += [folder / name for name in (CONFIG_FILE, VERSIONS_FILE) if (folder / name).exists()]
    for path in outputs:
        path.rename(target / path.name)
    return target
