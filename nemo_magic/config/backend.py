"""What a backend cannot do, refused by name before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nemo_magic.actors.config import TRT_LLM
from nemo_magic.config.schema import MagicConfig
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig

SPLIT_ON_GPUS: Mapping[str, tuple[str, ...]] = {"nemo_aligner": ("sequence_parallel",), "megatron": ()}
"""``backend`` → keys of ``model`` that split sequences and need a GPU there."""

_INSTEAD = "not there yet, take backend=nemo_aligner"

_ON_CPU = ("cpu_fused_adam", "mcore_distributed_optim")


def backend_problems(cfg: MagicConfig, roles: Mapping[Role, ModelConfig], planned: bool) -> Iterator[str]:
    """What ``cfg.backend`` does not have, or ``nemo-magic plan`` where it is ``planned``."""
    local = [model for role, model in roles.items() if cfg.actors.of(role).is_megatron]
    if cfg.backend != "megatron":
        for model in local:
            if model.num_moe_experts is not None:
                yield (
                    f"model.num_moe_experts={model.num_moe_experts} with backend={cfg.backend}: it has no mixtures of "
                    "experts here, take backend=megatron"
                )
        return
    if cfg.generation.engine == TRT_LLM:
        yield "backend=megatron with generation.engine=trt_llm: its exporter is NeMo's; set it to native or vllm"
    for role, model in roles.items():
        if cfg.actors.of(role).is_megatron:
            yield from _of_model(model)
            if planned and model.num_moe_experts is not None:
                yield f"model.num_moe_experts={model.num_moe_experts}: nemo-magic plan knows no mixtures of experts yet"
            if cfg.trainer.accelerator == "cpu" and model.optim.name not in _ON_CPU:
                yield (
                    f"backend=megatron with model.optim.name={model.optim.name} and trainer.accelerator=cpu: set it to "
                    + " or ".join(_ON_CPU)
                )


def _of_model(model: ModelConfig) -> Iterator[str]:
    if model.num_moe_experts is not None:
        yield from _of_experts(model)
    if model.peft.is_lora and model.transformer_engine:
        # Its norm is inside the linear layer, and the adapter's input is what the norm gives.
        yield (
            "backend=megatron with model.peft.peft_scheme=lora and model.transformer_engine=true: not there yet, set "
            "transformer_engine to false, or take backend=nemo_aligner"
        )
    if model.tokenizer.library != "huggingface":
        yield f"backend=megatron with model.tokenizer.library={model.tokenizer.library}: set it to huggingface"
    for key in ("virtual_pipeline_model_parallel_size", "num_micro_batches_with_partial_activation_checkpoints"):
        if getattr(model, key) is not None:
            yield f"backend=megatron with model.{key}={getattr(model, key)}: {_INSTEAD}"
    if model.sequence_parallel and model.peft.is_lora:
        yield f"backend=megatron with model.sequence_parallel=true and model.peft.peft_scheme=lora: {_INSTEAD}"
    if model.name:
        yield f"backend=megatron with model.name={model.name}: {_INSTEAD}"
    if model.apply_query_key_layer_scaling:
        yield "backend=megatron with model.apply_query_key_layer_scaling=true: it is for fp16 only, set it to false"


def _of_experts(model: ModelConfig) -> Iterator[str]:
    experts = f"model.num_moe_experts={model.num_moe_experts}"
    for key in ("transformer_engine", "bias", "sequence_parallel"):
        if getattr(model, key):
            yield f"{experts} with model.{key}=true: not there yet, set it to false"
    if not model.activation.endswith("glu"):
        yield f"{experts} with model.activation={model.activation}: experts are gated, set it to fast-swiglu"
    targets = [target for target in model.peft.lora_tuning.targets if target.startswith("mlp")]
    if model.peft.is_lora and targets:
        yield (
            f"{experts} with adapters on {' and '.join(targets)}: experts have none, set "
            "model.peft.lora_tuning.target_modules=[attention]"
        )
