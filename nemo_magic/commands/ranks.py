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
from importlib import import_module
from pathlib import Path

from nemo_magic import launcher
from nemo_magic.actors.builder import import_backend, prepare_process
from nemo_magic.actors.config import NATIVE
from nemo_magic.actors.errors import BackendError
from nemo_magic.child_processes import bind_children, refuse_long_temporary_folder
from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.runtime.errors import Preempted
from nemo_magic.runtime.folder_owner import FolderOwner
from nemo_magic.runtime.killed import NOTE
from nemo_magic.runtime.lossy_output import lossy_output
from nemo_magic.runtime.preemption import SAVE_SIGNALS
from nemo_magic.runtime.started_rank import forget_partial

Work = Callable[[MagicConfig], None]
"""What a rank does. The configuration has the address of the judge that the run started, where it started one."""


_OF_EVERY_RANK = ("nemo_magic.training.policies", "nemo_magic.rollout.local_policies")
"""Modules that a rank of any command imports."""


def run_on_ranks(
    args: argparse.Namespace,
    cfg: MagicConfig,
    work: Work,
    *,
    needs_judge: bool,
    prepare: Callable[[], None] | None = None,
    single_process: bool = False,
    forwarded_signals: Sequence[signal.Signals] = SAVE_SIGNALS,
    modules: Sequence[str] = (),
    owner: FolderOwner | None = None,
) -> int:
    """Do ``work`` on ``trainer.num_nodes`` × ``trainer.devices`` ranks and return the exit status.

    A single rank is this process. Several ranks are started here with the same command line, unless torchrun or srun
    started this process as one of them.

    Args:
        needs_judge: with ``judge.launch`` a judge is started beside the ranks.
        prepare: done once for all ranks, when nothing is refused any more and before the first of them starts.
        single_process: the first process does all the work, without torch and NeMo.
        forwarded_signals: are passed on to the ranks instead of ending the process that started them.
        modules: what ``work`` imports; on CPU it is imported once, and the ranks are forked after that.
        owner: of the folder that is written to (``run_folder.own_folder``).

    Raises:
        ConfigError: the ranks that are running are not those of the configuration, or would each start a judge.
        Preempted: the run was asked to end, and has saved.
    """
    with lossy_output():
        return _run_on_ranks(args, cfg, work, needs_judge, prepare, single_process, forwarded_signals, modules, owner)


def _run_on_ranks(
    args: argparse.Namespace,
    cfg: MagicConfig,
    work: Work,
    needs_judge: bool,
    prepare: Callable[[], None] | None,
    single_process: bool,
    forwarded_signals: Sequence[signal.Signals],
    modules: Sequence[str],
    owner: FolderOwner | None,
) -> int:
    is_rank = launcher.is_rank(cfg.trainer)
    launches_judge = needs_judge and cfg.judge.launch
    if is_rank and launches_judge:
        raise ConfigError(
            "judge.launch=true starts a judge beside the process that starts the ranks, and these ranks were started "
            "by somebody else: run `nemo-magic judge` first and give its address as judge.urls=[http://host:port]"
        )
    if not is_rank:
        forget_partial()
    try:
        refuse_long_temporary_folder()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if prepare is not None and launcher.is_first_process():
        prepare()
    note = None if owner is None else Path(cfg.exp_manager.explicit_log_dir) / NOTE
    if note is not None:
        note.unlink(missing_ok=True)  # it was of an earlier attempt
    argv, once_started = args.argv, [] if owner is None else [owner.keep]
    with launcher.local_judge(cfg) if launches_judge else nullcontext() as judge:
        if judge is not None:
            cfg = replace(cfg, judge=judge.config)
            argv = [*argv, f'judge.urls=["{judge.url}"]', "judge.launch=false"]
            once_started.append(judge.supervise)
        if not (single_process or is_rank) and cfg.trainer.num_nodes * cfg.trainer.devices > 1:
            fork = None
            if cfg.trainer.accelerator == "cpu":
                fork = launcher.Fork(lambda: _load(args.command, cfg, modules, owner), args.main)
            return launcher.launch(argv, cfg.trainer, forwarded_signals, fork, once_started, note)
        for begin in once_started:
            begin()
        if not single_process:
            run_rank(args.command, cfg, work)
        elif launcher.is_first_process():
            work(cfg)
    return 0


def run_rank(command: str, cfg: MagicConfig, work: Work) -> None:
    """Be one rank: set the process up, do ``work``, and leave the process groups where all ranks end together.

    Raises:
        ConfigError: what ``trainer.accelerator`` and ``generation.engine`` ask for is not here.
        Preempted: the run was asked to end, and has saved.
    """
    launcher.die_with_launcher()
    bind_children()
    _prepare_imports(command, cfg)
    try:
        work(cfg)
    except Preempted:
        _destroy_process_groups()
        raise
    _destroy_process_groups()


def _load(command: str, cfg: MagicConfig, modules: Sequence[str], owner: FolderOwner | None) -> None:
    """Import, once, what each of the ranks that are forked next would import for itself."""
    _prepare_imports(command, cfg)
    import_backend(cfg.backend)
    for name in (*_OF_EVERY_RANK, *modules):
        import_module(name)
    if owner is not None:
        owner.pause()


def _prepare_imports(command: str, cfg: MagicConfig) -> None:
    """What has to hold before the backend is imported; a second call changes nothing."""
    if not sys.warnoptions:
        # Importing NeMo warns some dozen times of packages that are not needed here; python -W shows them again.
        warnings.simplefilter("ignore")
    # Each rank would warn of it: tokenizing threads are of no use in a process that forks to save checkpoints.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        engine = NATIVE if command == "sft" else cfg.generation.engine
        prepare_process(cfg.backend, cfg.trainer.accelerator, engine)
    except BackendError as error:
        raise ConfigError(str(error)) from error


def _destroy_process_groups() -> None:
    from nemo_magic.actors.distributed import destroy

    destroy()
