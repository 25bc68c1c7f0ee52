"""Whether torchrun or srun started this process as one rank of many. Imports neither torch nor NeMo.

Their variables count only whole: a cluster, a notebook or a shell may leave one of them behind, and a process that took
it for its rank would wait for peers that nobody started, or leave the talking to a rank 0 that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from nemo_magic.config.errors import ConfigError

_TORCH = ("RANK", "WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS")
_TORCH_TOO = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
_SLURM_TOO = ("SLURM_LOCALID", "SLURM_NODEID", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
_NO_STEP = 0xFFFFFFF0
"""From here on Slurm's step numbers are names: of the batch script, of an interactive shell, of what is outside."""


@dataclass(frozen=True)
class StartedRank:
    """Number ``rank`` of ``size``; ``by``: the variable that says how many."""

    rank: int
    size: int
    by: str


def started_rank(environ: Mapping[str, str] | None = None) -> StartedRank | None:
    """This process as a rank; None where nobody started it as one of several.

    Raises:
        ConfigError: a variable is no number, or no such rank can be.
    """
    environ = os.environ if environ is None else environ
    if all(name in environ for name in _TORCH):
        return _numbers(environ, *_TORCH)
    if all(name in environ for name in _SLURM) and not is_batch_script(environ):
        started = _numbers(environ, *_SLURM)
        return started if started.size > 1 else None
    return None


def is_batch_script(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process runs in a Slurm job and no srun started it: it is the only one, however many tasks the job
    has."""
    environ = os.environ if environ is None else environ
    step = environ.get("SLURM_STEP_ID", "")
    return "SLURM_JOB_ID" in environ and not (step.isdecimal() and int(step) < _NO_STEP)


def is_rank_zero(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process is rank 0, or no rank of several."""
    started = started_rank(environ)
    return started is None or started.rank == 0


def forget_partial(environ: MutableMapping[str, str] | None = None) -> None:
    """Where this process is no rank of several: remove what libraries would take for a rank all the same."""
    environ = os.environ if environ is None else environ
    if started_rank(environ) is not None:
        return
    names = [*_TORCH, *_TORCH_TOO]
    # srun of one task is whole, and Lightning reads it.
    if is_batch_script(environ) or not all(name in environ for name in _SLURM):
        names += [*_SLURM, *_SLURM_TOO]
    for name in names:
        environ.pop(name, None)


def _numbers(environ: Mapping[str, str], rank: str, size: str) -> StartedRank:
    for name in (rank, size):
        if not environ[name].strip().isdecimal():
            raise ConfigError(
                f"the environment variable {name}={environ[name]!r} is no number: torchrun and srun set {rank} and "
                f"{size} for every rank; unset both to have the ranks started here"
            )
    started = StartedRank(int(environ[rank]), int(environ[size]), size)
    if started.rank >= started.size:
        raise ConfigError(
            f"{rank}={started.rank} of {size}={started.size}: there is no such rank; unset both to have the ranks "
            "started here"
        )
    return started
