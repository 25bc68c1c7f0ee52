"""An actor's weights on disk: Megatron distributed checkpoints, readable at any TP × PP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from megatron.core import dist_checkpointing

if TYPE_CHECKING:
    from nemo_magic.actors.actor import MagicActor


def save_weights(actor: MagicActor, folder: str | Path) -> None:
    """Write the actor's weights to ``folder``; every rank takes part. The folder must not hold a checkpoint yet."""
    folder = Path(folder)
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty: weights are never written over other weights")
    torch.distributed.barrier()
    dist_checkpointing.save(actor.sharded_state_dict(), str(folder))
    torch.distributed.barrier()


def load_weights(actor: MagicActor, folder: str | Path) -> None:
    """Read weights that ``save_weights`` wrote, at whatever parallelism, into the actor.

    Raises:
        FileNotFoundError: when ``folder`` holds no finished checkpoint.
    """
    if not (Path(folder) / "metadata.json").is_file():
        raise FileNotFoundError(
            f"actors.{actor.role}.restore_from_path={folder}: no finished checkpoint there (metadata.json is missing); "
            "give a folder that `nemo-magic sft` or `nemo-magic train` wrote, or a .nemo file"
        )
    state = dist_checkpointing.load(actor.sharded_state_dict(), str(folder))
    modules = actor.get_model_module_list()
    if len(modules) != 1:
        raise ValueError("virtual pipeline parallelism is not supported by NeMo-Aligner's actors")
    modules[0].load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    actor.weights_version += 1
