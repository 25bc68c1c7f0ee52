"""A role's actor with what makes it learn: optimizer, learning-rate schedule, gradient clipping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_magic.actors.optimizer_offload import Offload
from nemo_magic.actors.protocol import Actor, LossFunction, Metrics
from nemo_magic.actors.rank_group import RankGroup
from nemo_magic.actors.reference import move_reference
from nemo_magic.game.episode import Role
from nemo_magic.rl.batch import MicroBatch, Row, logprob_names, microbatch_count, microbatches


@dataclass(frozen=True)
class UpdateResult:
    """Result of one batch: whether the optimizer stepped, global metrics, the gradient norm before clipping."""

    made: bool
    metrics: Metrics
    grad_norm: float


@dataclass
class TrainablePolicy:
    """A role's actor, its optimizer and its learning-rate schedule.

    ``skipped_updates``: how many updates in a row were not made, because the gradient was not finite or too large.
    ``moves_reference``: its reference policy follows it, and is saved with it; ``reference_age``: for how many of its
    steps the reference has stood still.
    """

    role: Role
    actor: Actor
    optimizer: Any
    scheduler: Any
    max_grad_norm: float
    skipped_updates: int = 0
    moves_reference: bool = False
    reference_age: int = 0
    _offload: Offload = field(default_factory=Offload)

    def learn(
        self,
        batches: list[MicroBatch],
        loss: LossFunction,
        skip_norm: float | None = None,
        observe: bool = False,
        with_entropy: bool = False,
    ) -> UpdateResult:
        """One optimizer step on ``batches``, unless the gradient is not finite or longer than ``skip_norm``.

        ``observe``: the metrics hold ``entropy`` and ``neg_logprob_minus_entropy`` too. ``with_entropy``: as in
        ``Actor.accumulate``.

        Raises:
            FloatingPointError: an optimizer that clips inside its own step used a gradient that is not finite; its
                weights are lost.
        """
        self.optimizer.zero_grad()
        metrics = self.actor.accumulate(batches, loss, observe, with_entropy)
        made, norm = self.actor.apply_gradients(self.optimizer, self.scheduler, self.max_grad_norm, skip_norm)
        self.skipped_updates = 0 if made else self.skipped_updates + 1
        return UpdateResult(made, metrics, norm)

    def follow_with_reference(self, every: int, mix: float) -> None:
        """The policy has learned in one more step; after ``every`` of them its reference moves by the share ``mix``."""
        self.reference_age += 1
        if self.reference_age >= every:
            move_reference(self.actor, mix)
            self.reference_age = 0

    def offload_optimizer(self) -> None:
        """Another policy learns: gradients are freed, and the optimizer's state moves to host memory."""
        self.optimizer.zero_grad()
        self._offload.send(self.optimizer)

    def onload_optimizer(self) -> None:
        """Move the optimizer's state back to the device. Harmless when it is there."""
        self._offload.fetch(self.optimizer)

    def microbatches(self, rows: Sequence[Row], ranks: RankGroup) -> list[MicroBatch]:
        """This rank's rows as microbatches for the actor: equally many on every rank, and holding the same values."""
        cfg = self.actor.cfg
        each = ranks.gather_data_parallel((microbatch_count(len(rows), cfg.micro_batch_size), logprob_names(rows)))
        count, logprobs = max(number for number, _ in each), {name for _, names in each for name in names}
        multiple = cfg.tensor_model_parallel_size if cfg.sequence_parallel else 1
        return microbatches(rows, cfg.micro_batch_size, self.actor.chat.pad_id, count, multiple, logprobs)

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])
