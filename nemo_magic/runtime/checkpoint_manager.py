"""One atomic checkpoint of a whole run, written while training goes on.

A checkpoint is a folder ``step_XXXXXX`` with

- ``policies/``: weights, optimizers and learning-rate schedules, a Megatron distributed checkpoint;
- ``state.json``: everything else that the loop remembers; further JSON documents beside it;
- ``rng/``: the random states of every rank;
- ``checksums.json``: size and BLAKE2 of every file above; and ``COMMITTED``, which seals it.

It is written beside, made durable and then renamed, so a folder of that name is whole or was damaged later.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.actors.distributed import World
from nemo_magic.actors.random_state import random_states, set_random_states
from nemo_magic.actors.rank_group import run_on_all
from nemo_magic.actors.saving import ForkedWork, SaveRequest
from nemo_magic.actors.trainable import TrainablePolicy
from nemo_magic.actors.weights import (
    load_policies,
    missing_tensors,
    save_policies,
    sharded_bytes,
    unpickling,
)
from nemo_magic.config.experiment import CheckpointConfig
from nemo_magic.fsync_io import sync_folder, write_durably
from nemo_magic.runtime.checkpoint_paths import (
    FOLDER,
    STATE,
    checkpoint_name,
    committed_checkpoints,
    partial_path,
    prune_checkpoints,
    step_of,
)
from nemo_magic.runtime.errors import CheckpointError
from nemo_magic.runtime.manifest import Checksums, checksums_of, find_corruption, write_manifest

POLICIES, RNG = "policies", "rng"
_MARGIN = 1 << 20

T = TypeVar("T")


@dataclass
class _Pending:
    """A checkpoint being written. ``report`` receives (error, sums) of this rank's files."""

    step: int
    partial: Path
    request: SaveRequest
    writer: ForkedWork
    report: Connection | None
    sums: Checksums
    value: float | None


class CheckpointManager:
    """Saves, finds and restores a run's checkpoints in ``<run>/checkpoints``. All methods are for all ranks."""

    def __init__(self, world: World, run_dir: Path, config: CheckpointConfig, note: Callable[[str], None]) -> None:
        self.folder = run_dir / FOLDER
        self._world = world
        self._config = config
        self._note = note
        self._pending: _Pending | None = None
        self._last_step: int | None = None

    # --- saving

    def save(
        self,
        step: int,
        trainable: Mapping[str, TrainablePolicy],
        documents: Mapping[str, Any],
        metrics: Mapping[str, float],
        wait: bool = False,
    ) -> None:
        """Begin to save; ``poll`` or ``finish`` commits.

        ``documents``: file name → JSON value, of rank 0. To ``state.json`` the layout and what adapters stand on are
        added.

        Raises:
            CheckpointError: on every rank, when it cannot be written. What was committed before stays.
        """
        if step == self._last_step:
            if wait:
                self.finish()
            return
        self.finish()
        self._run_on_all(lambda: self._make_room(step))
        partial = partial_path(self.folder, step)
        self._refuse_without_room(trainable, partial)
        about = {"layout": layout_of(self._world, trainable), "adapters": adapters_of(trainable)}
        documents = {**documents, STATE: documents[STATE] | about}
        own = self._run_on_all(lambda: self._write_small(partial, documents))
        request = save_policies(trainable, partial / POLICIES)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        writer = ForkedWork((lambda: _write_and_checksum(request, partial, sender)) if request.files else None)
        sender.close()
        value = metrics.get(self._config.monitor) if self._config.monitor is not None else None
        report = receiver if request.files else None
        self._pending = _Pending(step, partial, request, writer, report, own, value)
        self._last_step = step
        if wait or not self._config.async_save:
            self.finish()

    def poll(self) -> None:
        """Commit what has been written meanwhile, if all ranks are done; costs one small all-reduce."""
        if self._pending is not None and self._pending.writer.is_done():
            self._commit(self._pending)

    def finish(self) -> None:
        """Wait for the checkpoint being written, and commit it."""
        if self._pending is not None:
            self._pending.writer.is_done(wait=True)
            self._world.barrier()
            self._commit(self._pending)

    # --- restoring

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, and need not be saved again. Damaged ones are reported and set aside.

        Raises:
            CheckpointError: when there are checkpoints and all of them are damaged.
        """
        paths = committed_checkpoints(self.folder)
        self._world.barrier()
        for path in paths:
            problems = self._problems_of(path)
            if not problems:
                self._last_step = step_of(path)
                return path
            self._note(f"checkpoint {path} is damaged ({'; '.join(problems[:3])}): set aside, going back further")
            self._run_on_all(functools.partial(self._set_aside, path))
        if paths:
            raise CheckpointError(
                f"{self.folder}: every checkpoint is damaged (kept as *.damaged). Start over with --resume never"
            )
        return None

    def restore(self, path: Path, trainable: Mapping[str, TrainablePolicy]) -> Mapping[str, Any]:
        """Restore policies and random generators from ``path``; returns ``state.json``.

        Raises:
            CheckpointError: it is of adapters on another base, or of other ones.
        """
        state: Mapping[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        _refuse_other_adapters(path, state.get("adapters", {}), trainable)
        load_policies(trainable, path / POLICIES)
        layout = layout_of(self._world, trainable)
        if state["layout"] == layout:
            with unpickling(path / RNG):
                set_random_states(torch.load(path / RNG / f"rank_{self._world.rank:05d}.pt"))
        else:
            self._note(
                f"{path} was saved at {state['layout']}, this run is {layout}: the ranks' random states are begun anew "
                "(only dropout draws from them)"
            )
        return state

    # --- the parts of saving

    def _make_room(self, step: int) -> None:
        if self._world.is_main:
            for leftover in self.folder.glob(".step_*.partial"):
                shutil.rmtree(leftover)
            partial = partial_path(self.folder, step)
            for sub in (POLICIES, RNG):
                (partial / sub).mkdir(parents=True)

    def _refuse_without_room(self, trainable: Mapping[str, TrainablePolicy], partial: Path) -> None:
        """Before a single byte is written: would it fit?"""
        each = self._world.all_gather((sharded_bytes(trainable), shutil.disk_usage(self.folder).free))
        copied, sharded = (sum(sizes[i] for sizes, _ in each) for i in range(2))
        needed, free = copied // self._world.dp_size + sharded + _MARGIN, each[0][1]
        if needed > free:
            self._discard(partial)
            raise CheckpointError(
                f"no room for a checkpoint: about {_mb(needed)} needed, {_mb(free)} free in {self.folder}. "
                f"{self._last_whole()}"
            )

    def _write_small(self, partial: Path, documents: Mapping[str, Any]) -> Checksums:
        rng = partial / RNG / f"rank_{self._world.rank:05d}.pt"
        with rng.open("wb") as file:
            torch.save(random_states(), file)
            file.flush()
            os.fsync(file.fileno())
        sums = checksums_of(partial, [rng])
        if self._world.is_main:
            for name, value in documents.items():
                write_durably(partial / name, json.dumps(value))
        return sums

    def _commit(self, pending: _Pending) -> None:
        """All ranks have written: finalize together, or give up together."""
        self._pending = None
        error = None
        if pending.report is not None:
            try:
                error, sums = pending.report.recv()
                pending.sums.update(sums)
            except EOFError:
                error = "the writing process died"
        failed = [text for text in self._world.all_gather(error) if text]
        if failed:
            self._discard(pending.partial)
            raise self.refused(f"checkpoint {pending.partial.name}: {failed[0]}")
        pending.request.finalize()
        self._run_on_all(lambda: self._refuse_incomplete(pending.partial / POLICIES))
        everything = [sums for sums in self._world.all_gather(pending.sums) if sums is not None]
        self._run_on_all(lambda: self._commit_manifest(pending, everything))
        self._note(f"checkpoint {self.folder / checkpoint_name(pending.step)} committed")

    def _refuse_incomplete(self, trainable: Path) -> None:
        if self._world.is_main:
            missing = missing_tensors(trainable)
            if missing:
                raise OSError(f"{trainable} does not say where {missing[0]} and {len(missing) - 1} more are")

    def _commit_manifest(self, pending: _Pending, parts: Sequence[Checksums]) -> None:
        if not self._world.is_main:
            return
        partial, target = pending.partial, self.folder / checkpoint_name(pending.step)
        sums = {path: entry for part in parts for path, entry in part.items()}
        write_manifest(partial, sums, {"step": pending.step, "value": pending.value})
        replaced = partial_path(self.folder, pending.step).with_suffix(".replaced.partial")
        if target.exists():  # an earlier save of the same step, of a run that goes back to it with other settings
            target.rename(replaced)
        partial.rename(target)
        sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        prune_checkpoints(self.folder, self._config.keep_last, self._config.mode)

    def _problems_of(self, path: Path) -> list[str]:
        """What is wrong with a checkpoint; ranks share the reading."""
        parts = self._world.all_gather(find_corruption(path, slice(self._world.rank, None, self._world.size)))
        return list(dict.fromkeys(problem for part in parts for problem in part))

    def _set_aside(self, path: Path) -> None:
        if self._world.is_main:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)

    # --- all ranks together

    def _run_on_all(self, work: Callable[[], T]) -> T:
        """``run_on_all``, where an OSError of one rank is a CheckpointError of all."""
        return run_on_all(self._world, work, lambda text: self.refused(f"{self.folder}: {text}"), OSError)

    def refused(self, text: str) -> CheckpointError:
        """The error of what cannot be written, which says where the run goes on."""
        return CheckpointError(f"{text}. {self._last_whole()}")

    def _discard(self, partial: Path) -> None:
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        self._world.barrier()

    def _last_whole(self) -> str:
        paths = committed_checkpoints(self.folder)
        kept = f"The last one that is whole is {paths[0]}" if paths else "There is no earlier one"
        return f"{kept}; when the cause is gone, the same command goes on from there"


def layout_of(world: World, trainable: Mapping[str, TrainablePolicy]) -> dict[str, int]:
    """Sizes of tensor, pipeline and data parallelism."""
    cfg = next(iter(trainable.values())).actor.cfg
    return {"tp": cfg.tensor_model_parallel_size, "pp": cfg.pipeline_model_parallel_size, "dp": world.dp_size}


def adapters_of(trainable: Mapping[str, TrainablePolicy]) -> dict[str, Any]:
    """Policy name → the card of its adapters; None where it has all its weights in the checkpoint."""
    cards = {name: policy.actor.card for name, policy in trainable.items()}
    return {name: None if card is None else asdict(card) for name, card in cards.items()}


def _refuse_other_adapters(path: Path, saved: Mapping[str, Any], trainable: Mapping[str, TrainablePolicy]) -> None:
    for name, policy in trainable.items():
        theirs, mine = saved.get(name), policy.actor.card
        if (theirs is None) != (mine is None):
            had, has = ("adapters", "none") if mine is None else ("all weights", "adapters")
            raise CheckpointError(f"{path} holds {had} of the {name}, which has {has} here: model.peft.peft_scheme")
        if theirs is not None and mine is not None:
            differences = mine.differences(AdapterCard.from_dict(theirs))
            if differences:
                raise CheckpointError(f"{path}: the {name}'s adapters cannot go on here: {'; '.join(differences)}")


def _write_and_checksum(request: SaveRequest, root: Path, report: Connection) -> None:
    """Run in a forked process: Megatron's own writing, then the checksums of what it wrote."""
    try:
        error = request.write()
        report.send((error, {} if error else checksums_of(root, request.files)))
    except OSError as caught:
        report.send((f"{type(caught).__name__}: {caught}", {}))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
