"""The seam between the game and its backends: what a model that plays a role and learns has to offer.

A backend (``actors/nemo_aligner/``, ``actors/megatron/``) has an ``Actor`` and builds a ``TrainablePolicy`` around it.
Nothing outside of ``actors/`` knows which one it is; ``actors/builder.py`` chooses. What both compute alike is
``GPTActor``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from nemo_magic.rl.batch import MicroBatch

if TYPE_CHECKING:
    from nemo_magic.actors.adapter_card import AdapterCard
    from nemo_magic.actors.tokenizer import ChatTokenizer
    from nemo_magic.game.episode import Role

Metrics = dict[str, tuple[float, float]]
"""Name → (sum, count); the mean over everything is the quotient of the all-reduced sums. Of names that end in ``_max``
the largest is kept instead."""


@dataclass(frozen=True)
class Objective:
    """A microbatch's share of the loss, already divided by global counts, and its metrics as (sum, count)."""

    loss: torch.Tensor
    metrics: dict[str, tuple[Any, Any]]


LossFunction = Callable[..., Objective]
"""(log-probabilities [b, S-1] at the sampling temperature, microbatch) → Objective; where the entropy was asked for, it
is the third argument [b, S-1]."""


class Actor(Protocol):
    """One role's model. All methods are for all ranks of the world together.

    ``cfg``: its configuration, with the keys of ``ModelConfig``. ``weights_version`` counts the changes of its weights;
    generators compare it to notice that theirs are stale. ``card``: which adapters these are, where they are what
    learns. ``keeps_reference``: it can give ``reference_logprobs``. ``reference_state``: π_ref, as ``host_state`` gives
    it; None where there is none, or where it is the base under adapters. ``trusts_weights``: what is unpickled for it
    may run any code. ``with_distributed_adam``: its optimizer's state is sharded over data-parallel ranks.
    """

    role: Role
    cfg: Any
    chat: ChatTokenizer
    model: Any
    weights_version: int
    card: AdapterCard | None
    keeps_reference: bool
    reference_state: dict[str, Any] | None
    trusts_weights: bool

    @property
    def with_distributed_adam(self) -> bool:
        """As the class says."""

    # --- learning

    def accumulate(
        self, batches: Sequence[MicroBatch], loss: LossFunction, observe: bool = False, with_entropy: bool = False
    ) -> Metrics:
        """Forward and backward over ``batches``, gradients reduced over data-parallel ranks; no optimizer step."""

    def apply_gradients(
        self, optimizer: Any, scheduler: Any, max_norm: float, skip_norm: float | None = None
    ) -> tuple[bool, float]:
        """Clip, step, and count the new weights; neither when the gradient is not finite or longer than ``skip_norm``.

        Returns whether the step was made, and the gradient norm before clipping; both are equal on every rank.
        """

    # --- log-probabilities

    def token_logprobs(self, batches: Sequence[MicroBatch], temperature: float | None = None) -> list[torch.Tensor]:
        """Log-probabilities of the next tokens in nats, one [b, S-1] per microbatch, at ``temperature``; None is that
        of sampling."""

    def ranked_logprobs(
        self, batches: Sequence[MicroBatch], top: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """``token_logprobs``, and the ``top`` likeliest next tokens of every position [b, S, top], with their ids."""

    def reference_logprobs(self, batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """``token_logprobs`` under the reference policy π_ref."""

    # --- decoding

    def prepare_for_inference(self) -> None:
        """Decode from now on; ``finish_inference`` ends it."""

    def finish_inference(self) -> None:
        """Decode no more."""

    # --- weights

    def get_model_module_list(self) -> list[Any]:
        """This rank's Megatron ``GPTModel``, in a list."""

    def learning_parameters(self) -> list[torch.nn.Parameter]:
        """This rank's parameters that an optimizer moves."""

    def host_state(self) -> dict[str, Any]:
        """A copy of this rank's weights in host memory."""

    def put_host_state(self, state: Mapping[str, Any]) -> None:
        """Take the weights that ``host_state`` gave. Counts no version."""

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Megatron's description of this rank's share of what learning changes: all weights, or the adapters.

        Names begin with ``model.`` in every backend.
        """

    def without_adapters(self) -> AbstractContextManager[None]:
        """Within the context its adapters do nothing."""

    def optimizer_sharded_state(self, is_loading: bool) -> dict[str, Any]:
        """The same of the optimizer's state."""
