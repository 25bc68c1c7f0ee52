"""MagicActor: a Megatron GPT model that plays a role and learns from token batches, NeMo-Aligner's PPO actor.

What it computes is ``GPTActor``'s; building, pipelining, reducing gradients and clipping are NeMo's and NeMo-Aligner's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo.collections.nlp.parts.peft_config import LoraPEFTConfig
from nemo_aligner.models.nlp.gpt.megatron_gpt_ppo_actor import MegatronGPTActorModel
from nemo_aligner.utils.train_utils import clip_gradients, set_eval, set_sync_funcs
from nemo_aligner.utils.utils import retrieve_model_state_dict_in_cpu, swap_dict
from omegaconf import DictConfig

from nemo_magic.actors.adapter_card import AdapterCard
from nemo_magic.actors.adapters import is_adapter
from nemo_magic.actors.gpt_actor import GPTActor
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.compat import nemo_model
from nemo_magic.compat.lora import adapted_layers, mend_classes, mend_model
from nemo_magic.game.episode import Role
from nemo_magic.rl.batch import MicroBatch


class MagicActor(GPTActor, MegatronGPTActorModel):
    """One role's model; an ``actors.protocol.Actor``."""

    def __init__(self, cfg: DictConfig, trainer: Any) -> None:
        super().__init__(cfg, trainer)
        self.role = Role(cfg.magic.role)
        self.chat = ChatTokenizer(self.tokenizer)
        self.weights_version = 0
        self.card: AdapterCard | None = None
        self.keeps_reference = False
        self.reference_state: dict[str, Any] | None = None
        self._temperature: float = cfg.magic.temperature
        self.trusts_weights: bool = cfg.magic.get("trust_weights", False)
        for module in self.get_model_module_list():
            # Microbatches are as wide as their own longest row; pipeline stages tell each other the shapes.
            module.config.variable_seq_lengths = cfg.pipeline_model_parallel_size > 1

    def model_provider_func(self, pre_process: bool, post_process: bool) -> torch.nn.Module:
        """NeMo's model of one pipeline stage, with what it leaves out."""
        model: torch.nn.Module = super().model_provider_func(pre_process, post_process)
        nemo_model.complete(model, self.cfg)
        return model

    def apply_gradients(
        self, optimizer: Any, scheduler: Any, max_norm: float, skip_norm: float | None = None
    ) -> tuple[bool, float]:
        """Clip, step, and count the new weights; neither when the gradient is not finite or longer than ``skip_norm``.

        Returns whether the step was made, and the gradient norm before clipping; both are equal on every rank.

        Raises:
            FloatingPointError: on every rank, when an optimizer that clips inside its own step was given a gradient
                that is not finite, or when a step left weights that are not (NotFiniteError): they are lost.
        """
        norm = clip_gradients(self, max_norm)
        if norm is None:  # Megatron-core's distributed optimizer clips inside its step and returns (done, norm, zeros).
            norm = float(optimizer.step()[1])
            if not math.isfinite(norm):
                self.weights_version += 1
                raise FloatingPointError(f"the {self.role}'s gradient norm is {norm}, and its optimizer has used it")
        else:
            norm = float(norm)
            if not math.isfinite(norm) or (skip_norm is not None and norm > skip_norm):
                return False, norm
            optimizer.step()
        scheduler.step()
        self.weights_version += 1
        self._refuse_not_finite(self.learning_parameters(), "weights after a step")
        return True, norm

    # --- what learning changes

    def learning_parameters(self) -> list[torch.nn.Parameter]:
        """This rank's parameters that an optimizer moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Megatron's description of this rank's share of what learning changes: all weights, or the adapters."""
        state: dict[str, Any] = super().sharded_state_dict(prefix)
        return state if self.card is None else {name: value for name, value in state.items() if is_adapter(name)}

    def add_adapters(self, card: AdapterCard) -> None:
        """Freeze the weights and add NeMo's own adapters, which begin as nothing. Before its optimizer is made.

        ``card``: the base that these weights are, and the adapters' shape.
        """
        mend_classes()
        # NeMo-Aligner's init_peft would also set setup_complete, and then NeMo gives no sharded state any more.
        self.add_adapter(LoraPEFTConfig(self.cfg))
        mend_model(self.get_model_module_list())
        self.card = card

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """As ``Actor.without_adapters``.

        NeMo-Aligner's ``adapter_control`` looks for adapters in the actor itself, and finds none where its model is a
        list, as under ``mcore_distributed_optim``.
        """
        layers = [layer for module in self.get_model_module_list() for layer in adapted_layers(module)]
        for layer in layers:
            layer.set_enabled_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.set_enabled_adapters(enabled=True)

    def optimizer_sharded_state(self, is_loading: bool) -> dict[str, Any]:
        """As ``Actor.optimizer_sharded_state``."""
        state: dict[str, Any] = self.trainer.strategy.optimizer_sharded_state_dict(is_loading=is_loading)
        return state

    def host_state(self) -> dict[str, Any]:
        """As ``Actor.host_state``."""
        state: dict[str, Any] = retrieve_model_state_dict_in_cpu(self, megatron_amp_O2=self.megatron_amp_O2)
        return state

    def put_host_state(self, state: Mapping[str, Any]) -> None:
        """As ``Actor.put_host_state``."""
        swap_dict(self, state, offload_onto_cpu=False, megatron_amp_O2=self.megatron_amp_O2)

    # --- what GPTActor asks of a backend

    def allreduce_gradients(self) -> None:
        """NeMo's mean over data-parallel ranks, which copies all gradients: not where there is one rank."""
        if parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1:
            super().allreduce_gradients()

    def _evaluate(self) -> None:
        set_eval(self)

    @contextmanager
    def _training_step(self) -> Iterator[None]:
        self.prepare_for_training_step()
        yield
        self.finish_training_step()

    def _schedule(self, batches: Sequence[MicroBatch], step: Any, forward_only: bool, **options: Any) -> list[Any]:
        set_sync_funcs(self, forward_only)
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=self._make_data_iterator_list(iter(batches)),
            model=self.model,
            num_microbatches=len(batches),
            forward_only=forward_only,
            seq_length=max(batch.tokens.size(1) for batch in batches),
            micro_batch_size=batches[0].tokens.size(0),
            **options,
        )
