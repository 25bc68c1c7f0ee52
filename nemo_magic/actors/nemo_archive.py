"""``.nemo`` files, NeMo's tars: what is in them is put into a folder, and nothing is run or imported for it.

NeMo's own way (``restore_from``) builds whatever class the file's configuration names, and unpickles weights freely.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from nemo_magic.actors.errors import ModelError

CONFIG, WEIGHTS = "model_config.yaml", "model_weights"


def extract(path: Path, folder: Path) -> Path:
    """Extract the ``.nemo`` file ``path`` to ``folder``; returns the folder of its weights, a Megatron checkpoint.

    Raises:
        ModelError: it is no ``.nemo`` file, or its weights are not a Megatron-core distributed checkpoint.
    """
    try:
        with tarfile.open(path, "r:*") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ModelError(f"{path} is no .nemo file, or damaged: {error}") from error
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{path} has no {CONFIG}")
    if not (folder / WEIGHTS).is_dir():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir()))
        raise ModelError(
            f"{path} has no folder {WEIGHTS} but {there}: only Megatron-core models saved as distributed checkpoints "
            "can be read (mcore_gpt: true)"
        )
    return folder / WEIGHTS
