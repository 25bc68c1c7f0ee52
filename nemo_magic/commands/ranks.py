"""Do a command's work on the ranks of a run: start them here, or be one of them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from nemo_magic import launcher
from nemo_magic.config import ConfigError, MagicConfig, save_resolved
from nemo_magic.runtime.errors import Preempted
from nemo_magic.runtime.preemption import SAVE_SIGNALS

Work = Callable[[MagicConfig], None]
"""What a rank does. The configuration has the address of the judge that the run started, where it started one."""

_RANK = "NEMO_MAGIC_RANK"
"""Environment variable: the process id of the rank that a spawned process belongs to."""


def run_on_ranks(
    args: argparse.Namespace,
    cfg: MagicConfig,
    work: Work,
    *,
    needs_judge: bool,
    saves_config: bool = False,
    single_process: bool = False,
    forwarded_signals: Sequence[signal.Signals] = SAVE_SIGNALS,
) -> int:
    """Do ``work`` on ``trainer.num_nodes`` × ``trainer.devices`` ranks and return the exit status.

    A single rank is this process. Several ranks are started here with the same command line, unless torchrun or srun
    started this process as one of them.

    Args:
        needs_judge: with ``judge.launch`` a judge is started beside the ranks.
        saves_config: the resolved configuration is written to the run's folder.
        single_process: the first process does all the work, without torch and NeMo.
        forwarded_signals: are passed on to the ranks instead of ending the process that started them.

    Raises:
        ConfigError: the ranks that are running are not those of the configuration, or would each start a judge.
        Preempted: the run was asked to end, and has saved.
    """
    is_rank = launcher.is_rank(cfg.trainer)
    launches_judge = needs_judge and cfg.judge.launch
    if is_rank and launches_judge:
        raise ConfigError(
            "judge.launch=true starts a judge beside the process that starts the ranks, and these ranks were started "
            "by somebody else: run `nemo-magic judge` first and give its address as judge.urls=[http://host:port]"
        )
    if saves_config and launcher.is_first_process():
        save_resolved(cfg, cfg.exp_manager.explicit_log_dir)
    argv = args.argv
    with launcher.local_judge(cfg) if launches_judge else nullcontext() as judge:
        if judge is not None:
            cfg = replace(cfg, judge=judge.config)
            argv = [*argv, f'judge.urls=["{judge.url}"]', "judge.launch=false"]
        if single_process:
            if launcher.is_first_process():
                work(cfg)
            return 0
        if not is_rank and cfg.trainer.num_nodes * cfg.trainer.devices > 1:
            return launcher.launch(argv, cfg.trainer, forwarded_signals)
        run_rank(args.command, cfg, work)
    return 0


def run_rank(command: str, cfg: MagicConfig, work: Work) -> None:
    """Be one rank: set the process up, do ``work``, and leave the process groups where all ranks end together.

    Raises:
        ConfigError: what ``trainer.accelerator`` and ``generation.trt_llm`` ask for is not here.
        Preempted: the run was asked to end, and has saved.
    """
    _set_up_rank(command, cfg)
    try:
        work(cfg)
    except Preempted:
        _destroy_process_groups()
        raise
    _destroy_process_groups()


def follow_rank() -> None:
    """In a process that a rank spawned: do not outlive a rank that is killed, and ignore signals that ask it to save.

    Megatron-core spawns such a process to collect what was written.
    """
    if rank := os.environ.get(_RANK):
        launcher.die_with_parent(int(rank))
        for number in SAVE_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _set_up_rank(command: str, cfg: MagicConfig) -> None:
    launcher.die_with_launcher()
    # multiprocessing names the parent to a spawned process too late.
    os.environ[_RANK] = str(os.getpid())
    if not sys.warnoptions:
        # Importing NeMo warns some dozen times of packages that are not needed here; python -W shows them again.
        warnings.simplefilter("ignore")
    # Each rank would warn of it: tokenizing threads are of no use in a process that forks to save checkpoints.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if cfg.trainer.accelerator == "cpu":
        from nemo_magic.compat import cpu

        try:
            cpu.install()
        except cpu.CudaAvailableError as error:
            raise ConfigError(str(error)) from error
    else:
        from nemo_magic.compat import trtllm

        try:
            trtllm.prepare(enabled=command != "sft" and cfg.generation.trt_llm.enable)
        except trtllm.TensorRTLLMMissingError as error:
            raise ConfigError(str(error)) from error


def _destroy_process_groups() -> None:
    from nemo_magic.actors.distributed import destroy

    destroy()
