"""An actor on disk: Megatron distributed checkpoints, readable at any TP × PP × DP."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from torch.distributed.checkpoint.filesystem import FileSystemReader

from nemo_magic.actors.adapter_card import ADAPTER_CARD, AdapterCard
from nemo_magic.actors.adapters import put_adapters
from nemo_magic.actors.distributed import World
from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.nemo_archive import extract
from nemo_magic.actors.rank_group import run_on_all
from nemo_magic.actors.reference import install_reference, sharded_reference
from nemo_magic.actors.saving import SaveRequest, begin_save, write_in_a_fork
from nemo_magic.compat.restricted_pickle import UnsafeWeightsError, only_weights
from nemo_magic.fsync_io import sync_folder

if TYPE_CHECKING:
    from nemo_magic.actors.protocol import Actor
    from nemo_magic.actors.trainable import TrainablePolicy


def save_weights(actor: Actor, folder: str | Path) -> None:
    """Write what the actor learns, its weights or its adapters, to ``folder``, whole or not at all; every rank takes
    part.

    Weights that ``folder`` already holds are replaced once the new ones are durable.

    Raises:
        OSError: on every rank, where one cannot write; what ``folder`` held is as it was.
    """
    world, folder = World.current(), Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")

    def begin() -> None:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def replace_folder() -> None:
        if world.is_main:
            if actor.card is not None:
                actor.card.write(partial)
            sync_folder(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            sync_folder(folder.parent)

    def refused(text: str) -> OSError:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        return OSError(f"{folder}: {text}")

    run_on_all(world, begin, refused, OSError)
    request = begin_save(actor.sharded_state_dict(), partial)
    run_on_all(world, lambda: write_in_a_fork(request), refused, OSError)
    request.finalize()
    run_on_all(world, replace_folder, refused, OSError)


def load_weights(actor: Actor, folder: str | Path) -> None:
    """Read weights that ``save_weights`` wrote, at whatever parallelism, or of a ``.nemo`` file, into the actor.

    An actor with adapters reads adapters: its base stays.

    Raises:
        FileNotFoundError: when ``folder`` holds no finished checkpoint.
        ModelError: it asks for more than weights (and the actor does not trust it), is no ``.nemo`` file, or holds
            adapters where the actor has none, or none or others where it has some.
    """
    folder = Path(folder)
    if folder.suffix == ".nemo" and folder.is_file():
        with tempfile.TemporaryDirectory(prefix="nemo_magic_") as scratch:
            load_weights(actor, extract(folder, Path(scratch)))
        return
    if not (folder / "metadata.json").is_file():
        raise FileNotFoundError(
            f"actors.{actor.role}.restore_from_path={folder}: no finished checkpoint there (metadata.json is missing); "
            "give a folder that `nemo-magic sft` or `nemo-magic train` wrote, or a .nemo file"
        )
    _refuse_other_adapters(actor, folder)
    # Installed within it: TransformerEngine's layers unpickle a state of their own.
    with unpickling(folder, actor.trusts_weights):
        _install_weights(actor, dist_checkpointing.load(actor.sharded_state_dict(), str(folder)))


def _refuse_other_adapters(actor: Actor, folder: Path) -> None:
    theirs, mine = AdapterCard.read(folder), actor.card
    if mine is None and theirs is not None:
        raise ModelError(
            f"{folder} holds adapters of {theirs.base}, and the {actor.role} has none: set "
            f"model.peft.peft_scheme=lora, actors.{actor.role}.restore_from_path={theirs.base} and "
            f"model.peft.restore_from_path={folder}"
        )
    if mine is not None and theirs is None:
        raise ModelError(f"{folder} holds no adapters ({ADAPTER_CARD} is missing), and the {actor.role} is some")
    if mine is not None and theirs is not None and (differences := mine.differences(theirs)):
        raise ModelError(f"{folder} holds adapters that are not the {actor.role}'s: {'; '.join(differences)}")


def save_policies(trainable: Mapping[str, TrainablePolicy], folder: Path) -> SaveRequest:
    """Begin to write weights, optimizer, learning-rate schedule and, where it moves, the reference of every policy into
    the empty ``folder``.

    What is still to do when this returns is in the request: writing files, which may happen in a forked process while
    they learn on, and finalizing, which all ranks do together after that.
    """
    return begin_save({name: _sharded_state(name, policy) for name, policy in trainable.items()}, folder)


def load_policies(trainable: Mapping[str, TrainablePolicy], folder: Path) -> None:
    """Read what ``save_policies`` wrote, at whatever parallelism.

    Raises:
        ModelError: it asks for more than weights, and not every actor trusts it.
    """
    wanted = {name: _sharded_state(name, policy, is_loading=True) for name, policy in trainable.items()}
    with unpickling(folder, all(policy.actor.trusts_weights for policy in trainable.values())):
        state = dist_checkpointing.load(wanted, str(folder))
        for name, policy in trainable.items():
            _install_weights(policy.actor, state[name]["weights"])
            _install_optimizer(policy, state[name]["optimizer"], state[name]["scheduler"])
            if policy.moves_reference:
                install_reference(policy.actor, state[name]["reference"])


@contextmanager
def unpickling(folder: Path, trusted: bool = False) -> Iterator[None]:
    """Within the context what is read of ``folder`` may be weights and nothing else, unless it is ``trusted``.

    Raises:
        ModelError: it asks for something else.
    """
    try:
        with only_weights(folder, trusted):
            yield
    except UnsafeWeightsError as error:
        raise ModelError(str(error)) from error


def missing_tensors(folder: Path) -> list[str]:
    """Names of tensors that a distributed checkpoint's metadata announces without saying in which file they are."""
    with unpickling(folder):
        metadata = FileSystemReader(folder).read_metadata()
    stored = {index.fqn for index in metadata.storage_data}
    return sorted(metadata.state_dict_metadata.keys() - stored)


def sharded_bytes(trainable: Mapping[str, TrainablePolicy]) -> tuple[int, int]:
    """Bytes on this rank that every data-parallel rank has alike, and bytes that only this one has."""
    copied = sharded = 0
    for policy in trainable.values():
        copied += _bytes(policy.actor.learning_parameters())
        if policy.moves_reference:
            copied += _bytes(policy.actor.reference_state)
        moments = _bytes(policy.optimizer.state_dict())
        if policy.actor.with_distributed_adam:
            sharded += moments
        else:
            copied += moments
    return copied, sharded


def _sharded_state(name: str, policy: TrainablePolicy, is_loading: bool = False) -> dict[str, Any]:
    state = {
        "weights": policy.actor.sharded_state_dict(),
        "optimizer": policy.actor.optimizer_sharded_state(is_loading),
        "scheduler": policy.scheduler.state_dict(),
    }
    if policy.moves_reference:
        state["reference"] = sharded_reference(policy.actor)
    add_prefix_for_sharding(state, f"{name}.")
    return state


def _install_weights(actor: Actor, state: Mapping[str, Any]) -> None:
    modules = actor.get_model_module_list()
    if len(modules) != 1:
        raise ValueError("virtual pipeline parallelism is not supported")
    named = {name.removeprefix("model."): value for name, value in state.items()}
    if actor.card is None:
        modules[0].load_state_dict(named)
    else:
        put_adapters(actor, named)
    actor.weights_version += 1


def _install_optimizer(policy: TrainablePolicy, optimizer: dict[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Take the moments and the count of steps; learning rate, schedule and decay are the configuration's, which may
    have another rate where a run goes back to an earlier checkpoint."""
    own = [{key: group[key] for key in group.keys() - {"params", "step"}} for group in policy.optimizer.param_groups]
    policy.optimizer.load_state_dict(optimizer)
    for group, options in zip(policy.optimizer.param_groups, own, strict=True):
        group.update(options)
    before = {key: scheduler[key] - 1 for key in ("last_epoch", "_step_count")}
    policy.scheduler.load_state_dict(policy.scheduler.state_dict() | before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a step of the schedule before one of the optimizer
        policy.scheduler.step()  # sets the rate


def _bytes(values: Any) -> int:
    if torch.is_tensor(values):
        return values.numel() * values.element_size()
    if isinstance(values, Mapping):
        return sum(map(_bytes, values.values()))
    if isinstance(values, list | tuple):
        return sum(map(_bytes, values))
    # apex keeps its shards in objects of its own
    return sum(map(_bytes, vars(values).values())) if hasattr(values, "params_shard") else 0
