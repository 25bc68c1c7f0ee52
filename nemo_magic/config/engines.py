"""What engines that decode in the place of an actor cannot do, refused by name before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from nemo_magic.actors.config import TRT_LLM, VLLM, VLLM_CPU_HEADS, VLLM_RANKS
from nemo_magic.config.schema import MagicConfig
from nemo_magic.game.episode import Role
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import config_of
from nemo_magic.model_config import ModelConfig

Models = Mapping[Role, ModelConfig]


def engine_problems(cfg: MagicConfig, roles: Models) -> Iterator[str]:
    """What ``generation.engine`` cannot do."""
    if cfg.generation.engine == TRT_LLM:
        yield from trt_llm_problems(cfg, roles)
    if cfg.generation.engine == VLLM:
        yield from _vllm(cfg, roles)


def _vllm(cfg: MagicConfig, roles: Models) -> Iterator[str]:
    enabled, native = "generation.engine=vllm", "set generation.engine=native to decode with the actor itself"
    if cfg.backend != "megatron":
        # NeMo needs transformers 4, and vLLM 5.
        yield f"{enabled} needs backend=megatron: an environment of NeMo has no vLLM; set one of the two"
    local = {role: model for role, model in roles.items() if cfg.actors.of(role).is_megatron}
    sampling = [cfg.actors.of(role).sampling_params for role in local]
    if cfg.grpo.tis_clip is not None and not {one.temperature for one in sampling} <= {1.0}:
        for role in local:
            options = cfg.actors.of(role)
            one, shortest = options.sampling_params, options.length_params.min_length
            if one.top_k or one.top_p < 1.0 or shortest:
                yield (
                    f"grpo.tis_clip={cfg.grpo.tis_clip} weighs by the generator's own log-probabilities, and vLLM has "
                    f"none of the whole distribution where actors.{role} has temperature={one.temperature}, top_k="
                    f"{one.top_k}, top_p={one.top_p}, min_length={shortest}: set top_k=0, top_p=1 and min_length=0, "
                    "or temperature=1 for both roles"
                )
    engines = set()
    for role, model in local.items():
        temperature = cfg.actors.of(role).sampling_params.temperature
        if not cfg.actors.of(role).sampling_params.use_greedy and not 0.01 <= temperature <= 2:
            yield (
                f"{enabled}: actors.{role}.sampling_params.temperature={temperature} is not between 0.01 and 2, "
                f"within which vLLM samples as it is told: {native}"
            )
        try:
            config = config_of(model, 1, {})
            rank = next((rank for rank in VLLM_RANKS if rank >= model.peft.lora_tuning.adapter_dim), None)
            engines.add(json.dumps([config, model.encoder_seq_length, model.peft.is_lora and rank], sort_keys=True))
        except ConvertError as error:
            yield f"{enabled}: the {role} has no architecture of Hugging Face, {error}: {native}"
        if model.qkv_bias and model.kv_channels not in (None, model.hidden_size // model.num_attention_heads):
            yield (
                f"{enabled}: the {role} has model.qkv_bias=true, which is Qwen2 there, and model.kv_channels="
                f"{model.kv_channels}, and Qwen2's heads have hidden_size / num_attention_heads numbers: {native}"
            )
        head = model.kv_channels or model.hidden_size // model.num_attention_heads
        if cfg.trainer.accelerator == "cpu" and head not in VLLM_CPU_HEADS:
            key = "kv_channels" if model.kv_channels else "hidden_size / num_attention_heads"
            yield (
                f"{enabled} and trainer.accelerator=cpu: the {role}'s heads have {head} numbers (model.{key}), and "
                f"vLLM has no attention on CPU for these, only for {', '.join(map(str, VLLM_CPU_HEADS))}: {native}"
            )
        if cfg.trainer.accelerator == "cpu" and model.num_moe_experts is not None:
            # Its layers are packed for the CPU, and 0.32 does not unpack them for a refit.
            yield f"{enabled} and trainer.accelerator=cpu: vLLM takes no new weights of experts there: {native}"
        if model.peft.is_lora and model.peft.lora_tuning.adapter_dim > VLLM_RANKS[-1]:
            yield (
                f"{enabled}: actors.{role}.model.peft.lora_tuning.adapter_dim={model.peft.lora_tuning.adapter_dim} is "
                f"more than {VLLM_RANKS[-1]}, the most that vLLM can run: {native}"
            )

    if cfg.trainer.accelerator != "cpu" and len(engines) > 1:
        yield (
            f"{enabled}: on a GPU one engine plays both roles, and these differ in their shape, in "
            "model.encoder_seq_length, in model.peft.peft_scheme or in what vLLM rounds adapter_dim up to "
            f"({', '.join(map(str, VLLM_RANKS))}): make them alike, or {native}"
        )


def trt_llm_problems(cfg: MagicConfig, roles: Models) -> Iterator[str]:
    """What TensorRT-LLM and its exporter in this stack cannot do."""
    enabled, native = "generation.engine=trt_llm", "set generation.engine=native to decode natively"
    if cfg.trainer.accelerator == "cpu":
        yield f"{enabled} needs a GPU, and trainer.accelerator=cpu: {native}"
    if cfg.grpo.tis_clip is not None:
        yield (
            f"grpo.tis_clip={cfg.grpo.tis_clip} weighs by the generator's own log-probabilities, and TensorRT-LLM "
            f"gives none ({enabled}): set grpo.tis_clip=null"
        )
    local = {role: model for role, model in roles.items() if not cfg.actors.of(role).is_remote}
    limits = {role: cfg.actors.of(role).length_params for role in local}
    rooms = [limits[role].prompt_room(model.encoder_seq_length) for role, model in local.items()]
    prompt = cfg.generation.trt_llm.max_input_len or max(rooms, default=0)
    response = max((limit.max_length for limit in limits.values()), default=0)
    for role, model in local.items():
        actor = f"actors.{role}"
        for key, who in (("qkv_bias", "Qwen"), ("qk_layernorm", "Qwen3")):
            if getattr(model, key):
                yield (
                    f"{enabled}, but the {role}'s model has model.{key}=true, as {who} has, and TensorRT-LLM of this "
                    f"stack has no such type: {native}, or serve the role elsewhere while it does not learn "
                    f"({actor}.remote.urls)"
                )
        if model.bias and cfg.generation.trt_llm.model_type == "llama":
            yield f"{enabled} with generation.trt_llm.model_type=llama, but the {role} has model.bias=true: {native}"
        if prompt + response > model.encoder_seq_length:
            yield (
                f"{enabled}: one engine decodes for both roles, prompts of {prompt} tokens (generation.trt_llm."
                f"max_input_len, or what length_params allow) and responses of {response}, together more than the "
                f"{role}'s model.encoder_seq_length={model.encoder_seq_length}: lower generation.trt_llm.max_input_len"
            )
        if limits[role].min_length > 0:
            yield (
                f"{actor}.length_params.min_length={limits[role].min_length} is not kept to by TensorRT-LLM "
                f"({enabled}): set it to 0"
            )
