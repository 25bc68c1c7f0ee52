"""What can end a run that had begun. Imports neither torch nor NeMo."""

from __future__ import annotations


class TrainingError(Exception):
    """The run cannot go on; what it has is saved, as its message says."""


class DivergedError(TrainingError):
    """Gradients that are not finite, or too large, one after the other."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read; what was committed before is as it was."""


class FolderInUseError(TrainingError):
    """Another process that lives owns the run's folder; nothing was touched."""


class Preempted(TrainingError):
    """The run was asked to end before its time, has saved, and goes on when it is started again."""
