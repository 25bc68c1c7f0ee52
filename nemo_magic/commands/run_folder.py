"""The folder that a command writes to: who owns it, whose results it holds, and what is kept of an earlier run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from nemo_magic.runtime.checkpoint_paths import SFT_WEIGHTS, SNAPSHOTS, STATE, committed_checkpoints, step_of
from nemo_magic.runtime.folder_owner import FolderOwner
from nemo_magic.runtime.resume import Resume

_RESULTS = {
    SFT_WEIGHTS: "the results of a warm-up",
    CHECKPOINTS: "a run's checkpoints",
    JSON_FILE: "the results of an evaluation",
}
"""What a command leaves in its folder, which the folder's config.yaml describes, and what that is."""

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


def refuse_results(cfg: MagicConfig, goes_on_with: str) -> None:
    """Refuse a folder with other results than ``goes_on_with``, a name of one of them: its config.yaml describes them.

    Raises:
        ConfigError: naming what it holds.
    """
    folder = Path(cfg.exp_manager.explicit_log_dir)
    for name, what in _RESULTS.items():
        if name != goes_on_with and (folder / name).exists():
            raise ConfigError(
                f"{folder} already holds {what} ({name}): choose another name (name=...) or "
                "exp_manager.explicit_log_dir, or remove the folder"
            )


def describe_run(cfg: MagicConfig, resume: Resume | None = None) -> None:
    """Write config.yaml and versions.json, and first set aside what a run that begins, or goes back to an earlier
    checkpoint, does not go on with."""
    folder = Path(cfg.exp_manager.explicit_log_dir)
    if resume is not None:
        if resume.checkpoint is None:
            set_aside(folder)
        elif not resume.newest:
            set_later_aside(folder, resume.checkpoint)
            adopt_snapshots(folder, resume.checkpoint)
    save_resolved(cfg, folder)


def set_aside(folder: Path) -> Path | None:
    """Move an earlier run's outputs, and the configuration that they are of, to the first free ``previous-NN/`` and
    return it; None where there were none."""
    outputs = [folder / name for name in _SET_ASIDE if (folder / name).exists()]
    if not outputs:
        return None
    target = _new_previous(folder)
    outputs += [folder / name for name in (CONFIG_FILE, VERSIONS_FILE) if (folder / name).exists()]
    for path in outputs:
        path.rename(target / path.name)
    return target


def set_later_aside(folder: Path, checkpoint: Path) -> None:
    """Move what a run has of the steps after its ``checkpoint`` to ``previous-NN/``, as they are played anew:
    checkpoints, which would be gone on from and outlive those that are saved now, snapshots, and results of the end;
    ``metrics.jsonl`` is copied."""
    if checkpoint.parent != (folder / CHECKPOINTS).resolve():
        return
    kept = {f"{owner}/{name}" for owner, names in _snapshot_names(checkpoint).items() for name in names}
    later = [path for path in committed_checkpoints(folder / CHECKPOINTS) if step_of(path) > step_of(checkpoint)]
    later += [path for path in (folder / SNAPSHOTS).glob("*/[!.]*") if f"{path.parent.name}/{path.name}" not in kept]
    later += [path for name in (CROSSPLAY_FILE, STRATEGIES_FILE, PICTURE_FILE) if (path := folder / name).exists()]
    if not later:
        return
    (folder / CHECKPOINTS / "best").unlink(missing_ok=True)  # it is linked anew at the next checkpoint
    target = _new_previous(folder)
    for path in later:
        moved = target / path.relative_to(folder)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    if (folder / METRICS_FILE).exists():
        shutil.copy2(folder / METRICS_FILE, target)


def adopt_snapshots(folder: Path, checkpoint: Path) -> None:
    """Give a run the snapshots that a ``checkpoint`` of another one names: linked where the file system can, else
    copied."""
    for owner, names in _snapshot_names(checkpoint).items():
        for name in names:
            source, target = (path / SNAPSHOTS / owner / name for path in (checkpoint.parent.parent, folder))
            if not target.exists():
                partial = target.with_name(f".{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(source, partial, copy_function=_link_or_copy)
                partial.rename(target)


def _snapshot_names(checkpoint: Path) -> Mapping[str, Sequence[str]]:
    names: Mapping[str, Sequence[str]] = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get(
        "snapshots", {}
    )
    return names


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _new_previous(folder: Path) -> Path:
    number = 1
    while (target := folder / f"previous-{number:02d}").exists():
        number += 1
    target.mkdir()
    return target
