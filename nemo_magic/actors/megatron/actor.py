"""MegatronActor: Megatron-core's GPT model as a role, without NeMo around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.transformer.utils import set_model_to_sequence_parallel

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.actors.adapters import is_adapter
from nemo_magic.actors.gpt_actor import GPTActor
from nemo_magic.actors.megatron.adapters import add_low_rank, without_low_rank
from nemo_magic.actors.megatron.optimizer import SHARDED, CosineSchedule, Optimizer
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig
from nemo_magic.rl.batch import MicroBatch


class MegatronActor(GPTActor):
    """One role's model; an ``actors.protocol.Actor``. ``begin_learning`` gives it an optimizer, once its starting
    weights are in."""

    def __init__(
        self,
        role: Role,
        cfg: ModelConfig,
        module: GPTModel,
        model: torch.nn.Module,
        chat: ChatTokenizer,
        temperature: float,
        trusts_weights: bool,
    ) -> None:
        self.role, self.cfg, self.chat, self.trusts_weights = role, cfg, chat, trusts_weights
        self.model: Any = model
        self.weights_version = 0
        self.card: AdapterCard | None = None
        self.keeps_reference = False
        self.reference_state: dict[str, Any] | None = None
        self.with_distributed_adam = cfg.optim.name in SHARDED
        self._module, self._temperature = module, temperature
        self._optimizer: Optimizer | None = None
        self._decodes_split_model = False

    def begin_learning(self, max_grad_norm: float) -> tuple[Optimizer, CosineSchedule]:
        """Its optimizer and learning-rate schedule."""
        config, optim = self._module.config, self.cfg.optim
        options = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=self.with_distributed_adam
        )
        self.model = DistributedDataParallel(config, options, self.model)
        config.finalize_model_grads_func = finalize_model_grads
        self._optimizer = Optimizer(self.model, optim, max_grad_norm)
        assert optim.lr is not None
        return self._optimizer, CosineSchedule(self._optimizer, optim.lr, optim.sched)

    # --- learning

    def apply_gradients(
        self, optimizer: Optimizer, scheduler: CosineSchedule, max_norm: float, skip_norm: float | None = None
    ) -> tuple[bool, float]:
        """As ``Actor.apply_gradients``.

        Raises:
            NotFiniteError: on every rank, when a step left weights that are not finite: they are lost.
        """
        made, norm = optimizer.step(max_norm, skip_norm)
        if made:
            scheduler.step()
            self.weights_version += 1
            self._refuse_not_finite(self.learning_parameters(), "weights after a step")
        return made, norm

    # --- decoding

    def prepare_for_inference(self) -> None:
        """As ``Actor.prepare_for_inference``. A new token cannot be split over ranks: sequences are whole meanwhile."""
        self._evaluate()
        self._decodes_split_model = bool(self._module.config.sequence_parallel)
        if self._decodes_split_model:
            set_model_to_sequence_parallel(self._module, set_to=False)

    def finish_inference(self) -> None:
        """As ``Actor.finish_inference``: the next training step leaves evaluation mode by itself."""
        if self._decodes_split_model:
            set_model_to_sequence_parallel(self._module, set_to=True)
        self._decodes_split_model = False

    # --- weights

    def get_model_module_list(self) -> list[GPTModel]:
        """As ``Actor.get_model_module_list``."""
        return [self._module]

    def learning_parameters(self) -> list[torch.nn.Parameter]:
        """As ``Actor.learning_parameters``."""
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad]

    def host_state(self) -> dict[str, Any]:
        """As ``Actor.host_state``."""
        return {
            name: value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
            for name, value in self._module.state_dict().items()
        }

    def put_host_state(self, state: Mapping[str, Any]) -> None:
        """As ``Actor.put_host_state``."""
        self._module.load_state_dict(state)

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """As ``Actor.sharded_state_dict``."""
        state: dict[str, Any] = self._module.sharded_state_dict(prefix=f"{prefix}model.")
        return state if self.card is None else {name: value for name, value in state.items() if is_adapter(name)}

    def add_adapters(self, card: AdapterCard) -> None:
        """Freeze the weights and add adapters, which begin as nothing. Before ``begin_learning``.

        ``card``: the base that these weights are, and the adapters' shape.
        """
        add_low_rank(self._module, self.cfg.peft.lora_tuning)
        self.card = card

    def without_adapters(self) -> AbstractContextManager[None]:
        """As ``Actor.without_adapters``."""
        return without_low_rank(self._module)

    def optimizer_sharded_state(self, is_loading: bool) -> dict[str, Any]:
        """As ``Actor.optimizer_sharded_state``."""
        assert self._optimizer is not None
        weights = {
            name: value for name, value in self.sharded_state_dict().items() if not name.endswith("_extra_state")
        }
        return self._optimizer.sharded_state_dict(weights, is_loading)

    # --- what GPTActor asks of a backend

    def _schedule(self, batches: Sequence[MicroBatch], step: Any, forward_only: bool, **options: Any) -> list[Any]:
        results: list[Any] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(batches),
            model=self.model,
            num_microbatches=len(batches),
            forward_only=forward_only,
            seq_length=max(batch.tokens.size(1) for batch in batches),
            micro_batch_size=batches[0].tokens.size(0),
            **options,
        )
        return results

    @contextmanager
    def _training_step(self) -> Iterator[None]:
        """The schedule itself reduces gradients at its end (``finalize_model_grads``)."""
        self.model.train()
        yield

    def _evaluate(self) -> None:
        self.model.eval()
