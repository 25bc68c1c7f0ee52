"""Where a run that fails within a step goes on from. Imports neither torch nor NeMo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nemo_magic.actors.errors import NotFiniteError, RemoteError
from nemo_magic.judge.errors import JudgeError
from nemo_magic.runtime.errors import DivergedError, Preempted, TrainingError


@contextmanager
def consistent_on_failure(
    done: int, weights_version: Callable[[], int], save: Callable[[], None], finish: Callable[[], None]
) -> Iterator[None]:
    """A step that fails within the context ends the run in a consistent state.

    Where no weights have changed since the step began, the game is saved as it was before it. Where they have (an
    update was made, of one minibatch at least), the learner has moved on and the game has not: nothing is saved, and
    the run goes on from its last checkpoint. What a diverged model computed says that its weights are lost, whenever
    they were: nothing is saved either.

    Args:
        done: steps that were done before this one.
        weights_version: counts the changes of the learner's weights.
        save: commits a checkpoint.
        finish: commits the checkpoint that is being written, if any.

    Raises:
        TrainingError: from what failed; it says where the run goes on. Preempted where the step was ended by a signal.
    """
    version = weights_version()
    try:
        yield
    except NotFiniteError as error:
        finish()
        raise DivergedError(
            f"step {done + 1}: {error}; nothing of this step is saved, and the last checkpoint may hold such weights "
            "already. Go on from an earlier one (--resume FOLDER), with a lower model.optim.lr"
        ) from error
    except (JudgeError, RemoteError, TrainingError) as error:
        kind = Preempted if isinstance(error, Preempted) else TrainingError
        if weights_version() == version:
            save()
            raise kind(f"step {done + 1}: {error}; saved after {done}") from error
        finish()
        raise kind(f"step {done + 1}, after an update: {error}; goes on from the last checkpoint") from error
