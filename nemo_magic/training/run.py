"""What a run does around a step: log, save when it is due, end on a signal, report a hang."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nemo_magic.actors.distributed import World
from nemo_magic.config import MagicConfig
from nemo_magic.config.secrets import masked
from nemo_magic.runtime.checkpoint_manager import CheckpointManager
from nemo_magic.runtime.errors import Preempted, TrainingError
from nemo_magic.runtime.preemption import Preemption
from nemo_magic.runtime.resume import Resume
from nemo_magic.runtime.timers import Timers
from nemo_magic.runtime.watchdog import Watchdog, host_of_process
from nemo_magic.tracking.metric_logger import MetricLogger


class Run:
    """A run's folder, checkpoints and logs. All methods are for all ranks.

    ``logger`` exists within ``watch``, and until its resources are closed.
    """

    logger: MetricLogger

    def __init__(
        self, cfg: MagicConfig, world: World, timers: Timers, total_steps: int, preemption: Preemption
    ) -> None:
        self.folder = Path(cfg.exp_manager.explicit_log_dir)
        self.total_steps = total_steps
        self._cfg, self._world, self._timers = cfg, world, timers
        self.checkpoints = CheckpointManager(world, self.folder, cfg.exp_manager.checkpoint_callback_params, self.note)
        self._note = print_line
        self._preemption = preemption

    def note(self, text: str) -> None:
        """Print a message for the user, on the main rank only."""
        if self._world.is_main:
            self._note(text)

    @contextmanager
    def watch(self, log_resources: ExitStack, resume_step: int | None, step: Callable[[], int]) -> Iterator[None]:
        """Within the context steps are logged, a hang ends the process, and signals wait for ``before_step``,
        or end the wait for a server.

        The final evaluation comes after it: everything is saved then, and a signal may end the process at once.

        Args:
            log_resources: closes the logs, later than this context: the final evaluation is logged too.
            resume_step: the step that the run goes on after; None for a new one.
            step: the number of the step under way.
        """
        exp = self._cfg.exp_manager
        hosts = self._world.all_gather(host_of_process())
        watchdog = Watchdog(self.folder, exp.hang_timeout, self._world.rank, hosts, self._timers, step)
        with watchdog, self._preemption:
            self.logger = log_resources.enter_context(
                MetricLogger(
                    exp,
                    is_main=self._world.is_main,
                    resume_step=resume_step,
                    total_steps=self.total_steps,
                    title=self._cfg.name,
                    config=masked(self._cfg),
                    analysis=self._cfg.analysis,
                )
            )
            self._note = self.logger.note
            yield

    def has_resumed(self, resume: Resume, path: Path, done: int, save: Callable[[bool], None]) -> None:
        """Say where the run goes on from. A checkpoint that is not its own newest one is saved as its own: whatever
        ends the run now, the same command goes on."""
        self.note(f"resumed from {path}: {done} of {self.total_steps} steps are done")
        if not resume.newest:
            save(True)

    def checkpoint_of(self, resume: Resume) -> Path | None:
        """The checkpoint that the run goes on from, and None where it begins.

        Raises:
            CheckpointError: every checkpoint that there is, is damaged.
        """
        return self.checkpoints.newest() if resume.newest else resume.checkpoint

    def before_step(self, done: int, save: Callable[[bool], None], alarm: str | None = None) -> None:
        """After ``done`` steps and before the next: save where it is due, and end the run where it was asked to or
        an ``alarm`` says so.

        Raises:
            Preempted: a signal was received, or the run's time is over; the state is saved.
            TrainingError: an alarm is on whose action is stop; the state is saved. A run that is started again ends
                here too.
        """
        every = self._cfg.exp_manager.checkpoint_callback_params.every_n_train_steps
        if done and done % every == 0:
            save(False)
        if reason := self._preemption.reason():
            save(True)
            raise Preempted(f"{reason}: saved after {done} of {self.total_steps} steps")
        if alarm is not None:
            save(True)
            raise TrainingError(f"{alarm}; saved after {done} of {self.total_steps} steps")
        self.checkpoints.poll()


def print_line(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
