"""Starting ranks: on one machine by torch's elastic launcher; under Slurm or torchrun they are started already."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_magic.config import ConfigError, MagicConfig, TrainerConfig

if TYPE_CHECKING:
    from nemo_magic.judge.local import LocalJudge

_RUN_ID = "nemo-magic-"


def is_rank(trainer: TrainerConfig, environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process was started as one rank of many, by torchrun or by srun.

    Raises:
        ConfigError: it was, but of another number of ranks than ``trainer`` asks for.
    """
    environ = os.environ if environ is None else environ
    wanted = trainer.num_nodes * trainer.devices
    if "RANK" in environ and "WORLD_SIZE" in environ:
        started, by = int(environ["WORLD_SIZE"]), "WORLD_SIZE"
    # A batch script or an interactive allocation of one task has these variables too, and starts no ranks.
    elif "SLURM_PROCID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1:
        started, by = int(environ["SLURM_NTASKS"]), "SLURM_NTASKS"
    else:
        if trainer.num_nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes={trainer.num_nodes}: start the ranks with srun, {trainer.devices} tasks per node; "
                "without it one machine is all there is"
            )
        return False
    if started != wanted:
        raise ConfigError(
            f"{started} ranks were started ({by}), but trainer.num_nodes={trainer.num_nodes} × "
            f"trainer.devices={trainer.devices} = {wanted}"
        )
    return True


def is_first_process(environ: Mapping[str, str] | None = None) -> bool:
    """Whether nobody else speaks for the run: the process that starts the ranks, or rank 0 where somebody else did."""
    environ = os.environ if environ is None else environ
    if environ.get("TORCHELASTIC_RUN_ID", "").startswith(_RUN_ID):
        return False
    return environ.get("RANK", environ.get("SLURM_PROCID", "0")) == "0"


def launch(argv: Sequence[str], trainer: TrainerConfig) -> int:
    """Run the same command line as ``trainer.devices`` ranks here; 0, 1 when a rank failed, 128 + a signal."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if trainer.accelerator == "cpu":
        # One core a rank: with more threads the ranks wait for each other.
        os.environ["OMP_NUM_THREADS"] = "1"
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        # Lightning would take the rank from a surrounding allocation instead of from the launcher.
        del os.environ[name]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=trainer.devices,
        run_id=f"{_RUN_ID}{uuid.uuid4().hex}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}",
        rdzv_configs={"timeout": 600},
        max_restarts=0,
        local_addr="127.0.0.1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "nemo_magic.cli", *argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(
            f"nemo-magic: rank {rank} ended with status {failure.exitcode}; its own message is above", file=sys.stderr
        )
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def local_judge(cfg: MagicConfig) -> LocalJudge:
    """The run's own judge, a context manager; its output goes to the run's folder."""
    from nemo_magic.judge.local import launch_local

    return launch_local(cfg.judge, Path(cfg.exp_manager.explicit_log_dir) / "judge.log")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
