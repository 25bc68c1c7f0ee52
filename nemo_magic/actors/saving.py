"""Writing a Megatron distributed checkpoint in a forked process, while the ranks that began it learn on."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing

_SETTLES = 0.02
"""Seconds before a fork."""


def _let_threads_finish() -> None:
    """Before a fork, of which Megatron makes one for every checkpoint that it writes.

    A thread of a process group that drops a collective's tensors takes, for an instant and without the GIL, a lock of
    the interpreter. Python 3.10 and 3.11 renew that lock in the child only after they have taken it: if it was held,
    the child waits for ever. A save's fork follows its collectives at once, so it does happen: on Python 3.10 over gloo
    once in about a hundred saves, and with this never in 750.
    """
    time.sleep(_SETTLES)


os.register_at_fork(before=_let_threads_finish)


@dataclass(frozen=True)
class SaveRequest:
    """What is still to do of a save. ``files``: what this rank writes; ``write``, for a forked process, writes them and
    returns what went wrong, in words. ``finalize``: once every rank has written, all do it together."""

    files: tuple[Path, ...]
    write: Callable[[], str | None]
    finalize: Callable[[], None]


def begin_save(state: Mapping[str, Any], folder: Path) -> SaveRequest:
    """Megatron's request to write ``state`` to the empty ``folder``, with every tensor written as large as it is."""
    request = dist_checkpointing.save(state, str(folder), async_sharded_save=True)

    def finalize() -> None:
        for step in request.finalize_fns:
            step()

    if request.async_fn is None:
        return SaveRequest((), lambda: None, finalize)
    # Megatron-core 0.10 copies from the device by itself; 0.16 has a function for it, and gives the rank first.
    *options, buckets, results = request.async_fn_args
    if getattr(request, "preload_fn", None) is not None:
        buckets = request.preload_fn()
    alone = [(path, name, (objects, _OnItsOwn(tensors))) for path, name, (objects, tensors) in buckets]

    def write() -> str | None:
        tap = _ErrorTap(results)
        try:
            request.async_fn(*options, alone, tap)
        except OSError as caught:
            return f"{type(caught).__name__}: {caught}"
        return None if tap.error is None else f"{type(tap.error).__name__}: {tap.error}"

    return SaveRequest(tuple(Path(path) for path, *_ in alone), write, finalize)


class ForkedWork:
    """``work`` in a fork of this process, on ranks that have some. All ranks make one, and ask together."""

    def __init__(self, work: Callable[[], None] | None) -> None:
        self._process: Any = None
        if work is not None:
            torch.cuda.synchronize()
            self._process = multiprocessing.get_context("fork").Process(target=work)
            self._process.start()

    def is_done(self, wait: bool = False) -> bool:
        """Whether every rank's work is done; with ``wait`` this rank's own is."""
        alive = torch.tensor(
            [self._process is not None and self._process.is_alive()],
            dtype=torch.int,
            device=torch.cuda.current_device(),
        )
        torch.distributed.all_reduce(alive)
        if int(alive) and not wait:
            return False
        if self._process is not None:
            self._process.join()
            self._process = None
        return True


def write_in_a_fork(request: SaveRequest) -> None:
    """Write this rank's files, and wait until all ranks have. Raises OSError with the words of what went wrong here."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    writer = ForkedWork((lambda: _report(request, sender)) if request.files else None)
    sender.close()
    writer.is_done(wait=True)
    if not request.files:
        return
    try:
        error = receiver.recv()
    except EOFError:
        error = "the writing process died"
    if error is not None:
        raise OSError(error)


def _report(request: SaveRequest, sender: Connection) -> None:
    sender.send(request.write())


class _ErrorTap:
    """Megatron's result queue, which records an error that is put into it."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.error: Exception | None = None

    def put(self, value: Any) -> None:
        if isinstance(value, Exception):
            self.error = value
        self._queue.put(value)


class _OnItsOwn(Sequence[tuple[Any, torch.Tensor]]):
    """(item, tensor) to be written, where a tensor that is a part of a larger one is copied when its turn comes.

    ``torch.save`` writes a tensor's whole storage. On CPU both halves of a gated MLP's ``linear_fc1``, and of its
    moments, are views of one, which would be written twice; from a GPU tensors come as copies of their own.
    """

    def __init__(self, items: Sequence[tuple[Any, torch.Tensor]]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Any:
        for item, tensor in self._items:
            alone = tensor.untyped_storage().nbytes() == tensor.nbytes
            yield item, tensor if alone else tensor.clone()
