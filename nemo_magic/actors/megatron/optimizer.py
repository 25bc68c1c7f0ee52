"""Adam by Megatron-core, and the learning rate over its steps. What they save is what the other backend saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer

from nemo_magic.model_config import OptimConfig, SchedConfig

SHARDED = ("distributed_fused_adam", "mcore_distributed_optim")
"""``model.optim.name`` of optimizers whose state is sharded over data-parallel ranks."""


class Optimizer:
    """Of one model: fp32 main weights where it computes in bf16, gradients from ``model``'s buffers, clipped by their
    norm over all ranks. Weights of one dimension, and biases, do not decay."""

    def __init__(self, model: DistributedDataParallel, optim: OptimConfig, clip: float) -> None:
        assert optim.lr is not None
        options: dict[str, Any] = {} if optim.eps is None else {"adam_eps": optim.eps}
        config = OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.betas[0],
            adam_beta2=optim.betas[1],
            bf16=model.config.bf16,
            params_dtype=model.config.params_dtype,
            use_distributed_optimizer=model.ddp_config.use_distributed_optimizer,
            clip_grad=clip,
            **options,
        )
        megatron = get_megatron_optimizer(config, [model])
        (self._megatron,) = megatron.chained_optimizers if isinstance(megatron, ChainedOptimizer) else (megatron,)
        self._model, self._config = model, config
        self._is_sharded = config.use_distributed_optimizer
        for group in self.param_groups:
            group["weight_decay"] = optim.weight_decay * group["wd_mult"]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As torch's optimizers have them."""
        groups: list[dict[str, Any]] = self._megatron.param_groups
        return groups

    @property
    def state(self) -> Any:
        """As torch's optimizers have it."""
        return self._megatron.state

    @property
    def main_weights(self) -> list[torch.Tensor]:
        """What a step changes where the model computes in bf16: fp32 weights, this rank's share of sharded ones."""
        name = "shard_fp32_from_float16_groups" if self._is_sharded else "fp32_from_float16_groups"
        return [weight for group in getattr(self._megatron, name, ()) for weight in group]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._model.zero_grad_buffer()
        self._megatron.zero_grad()

    @torch.no_grad()
    def step(self, max_norm: float, skip_norm: float | None) -> tuple[bool, float]:
        """Clip to ``max_norm`` and step, unless the norm is not finite or above ``skip_norm``. Whether it was made, and
        the norm before clipping; both are equal on every rank."""
        self._megatron.prepare_grads()
        norm = float(self._megatron.clip_grad_norm(max_norm))
        if not math.isfinite(norm) or (skip_norm is not None and norm > skip_norm):
            return False, norm
        self._megatron.step_with_ready_grads()
        return True, norm

    def state_dict(self) -> dict[str, Any]:
        """All tensors of this rank's state."""
        return {"state": list(self.state.values()), "main_weights": self.main_weights}

    def init_state(self) -> None:
        """Create the moments of a role that has not learned yet, zeros, where they are to be."""
        self._megatron.init_state_fn(self._megatron.optimizer, self._config)

    def sharded_state_dict(self, weights: Mapping[str, Any], is_loading: bool) -> dict[str, Any]:
        """This rank's state, described as ``weights``, those of the model, are. That of a distributed optimizer is
        written in the model's shapes, so that it can be read at another layout."""
        self.init_state()
        options = {"metadata": {"distrib_optim_sharding_type": "fully_reshardable"}} if self._is_sharded else {}
        state: dict[str, Any] = self._megatron.sharded_state_dict(dict(weights), is_loading=is_loading, **options)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint held, of either backend. Of its parameter groups that is the count of steps; learning
        rates and decay are the configuration's."""
        if self._is_sharded or self._config.bf16:
            self._megatron.load_state_dict(state)
            return
        groups = self._megatron.state_dict()["param_groups"]
        for own, theirs in zip(groups, state["param_groups"], strict=True):
            own |= {key: theirs[key] for key in ("step", "lr") if key in theirs}
        self._megatron.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


class CosineSchedule:
    """The learning rate of the next step: up linearly, down by half a cosine, then constant. NeMo's
    ``CosineAnnealing``, number by number."""

    def __init__(self, optimizer: Optimizer, lr: float, sched: SchedConfig) -> None:
        assert sched.min_lr is not None
        assert sched.max_steps is not None
        self._optimizer, self._lr, self._sched = optimizer, lr, sched
        self._floor, self._total = sched.min_lr, sched.max_steps
        self.last_epoch = 0
        self._apply()

    def step(self) -> None:
        """One more step was made."""
        self.last_epoch += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """What NeMo's reads, too."""
        return {"last_epoch": self.last_epoch, "_step_count": self.last_epoch + 1, "_last_lr": [self.rate()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the step that ``state`` was saved at."""
        self.last_epoch = int(state["last_epoch"])
        self._apply()

    def rate(self) -> float:
        """Of the next step."""
        step, warmup, constant = self.last_epoch, self._sched.warmup_steps, self._sched.constant_steps
        if constant > 0:
            # Megatron-LM's, whose first step of a warm-up has no learning rate.
            decay = self._total - constant - warmup
            if warmup > 0 and step <= warmup:
                return self._lr * step / warmup
            return self._floor if step > warmup + decay else self._cosine((step - warmup) / decay)
        if warmup > 0 and step <= warmup:
            return self._lr * (step + 1) / (warmup + 1)
        return self._floor if step > self._total else self._cosine((step - warmup) / (self._total - warmup))

    def _cosine(self, share: float) -> float:
        return (self._lr - self._floor) * 0.5 * (1 + math.cos(math.pi * share)) + self._floor

    def _apply(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate()
