"""A step that fails: what is saved depends on whether weights have changed since it began."""

from __future__ import annotations

import pytest

from nemo_magic.actors.errors import NotFiniteError, RemoteUnavailable
from nemo_magic.judge.errors import JudgeUnavailable
from nemo_magic.runtime.errors import DivergedError, Preempted, TrainingError
from nemo_magic.runtime.failures import consistent_on_failure


class Learner:
    """Counts its weights' versions, and what was saved or finished at which."""

    def __init__(self) -> None:
        self.version, self.log = 7, list[str]()

    def fail(self, error: Exception, updates: int) -> None:
        with consistent_on_failure(
            4, lambda: self.version, lambda: self.log.append("saved"), lambda: self.log.append("finished")
        ):
            self.version += updates
            raise error


@pytest.mark.parametrize("error", [JudgeUnavailable("away"), RemoteUnavailable("away"), DivergedError("away")])
def test_a_step_that_changed_no_weights_is_saved_as_it_was_before(error: Exception) -> None:
    learner = Learner()
    with pytest.raises(TrainingError, match=r"^step 5: away; saved after 4$"):
        learner.fail(error, updates=0)
    assert learner.log == ["saved"]


@pytest.mark.parametrize("error", [JudgeUnavailable("away"), DivergedError("away")])
@pytest.mark.parametrize("updates", [1, 2])
def test_half_updated_weights_are_never_saved_as_an_untouched_step(error: Exception, updates: int) -> None:
    learner = Learner()
    with pytest.raises(TrainingError, match=r"^step 5, after an update: away; goes on from the last checkpoint$"):
        learner.fail(error, updates)
    assert learner.log == ["finished"]


@pytest.mark.parametrize("updates", [0, 1])
def test_what_a_diverged_model_computed_is_never_saved_whether_it_was_updated_or_not(updates: int) -> None:
    learner = Learner()
    with pytest.raises(DivergedError, match=r"^step 5: no numbers; nothing of this step is saved.*--resume FOLDER"):
        learner.fail(NotFiniteError("no numbers"), updates)
    assert learner.log == ["finished"]


@pytest.mark.parametrize(("updates", "log"), [(0, "saved"), (1, "finished")])
def test_a_signal_within_a_step_saves_as_a_failure_does_and_is_no_failure(updates: int, log: str) -> None:
    learner = Learner()
    with pytest.raises(Preempted, match="^step 5"):
        learner.fail(Preempted("SIGTERM received"), updates)
    assert learner.log == [log]


def test_a_defect_of_ours_is_no_failure_of_a_step() -> None:
    learner = Learner()
    with pytest.raises(ZeroDivisionError):
        learner.fail(ZeroDivisionError(), updates=0)
    assert learner.log == []
