"""What an engine cannot do is refused by key, with what to set instead."""

from __future__ import annotations

import pytest

from nemo_magic.actors.config import VLLM_CPU_HEADS
from nemo_magic.config import ConfigError, compose

BASE = ["backend=megatron", "generation.engine=vllm", "model.kv_channels=32"]
ASKS_FOR_LOGPROBS = ["grpo.tis_clip=2", "actors.attacker.sampling_params.temperature=0.8"]


def test_vllm_is_an_engine_of_the_backend_megatron() -> None:
    assert compose("magic_sandbox", BASE).generation.engine == "vllm"
    with pytest.raises(ConfigError, match=r"generation\.engine=vllm needs backend=megatron"):
        compose("magic_sandbox", [*BASE, "backend=nemo_aligner"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.kv_channels=null"], r"heads have 24 numbers \(model\.hidden_size / num_attention_heads\).*32, 64"),
        (["model.kv_channels=40"], r"heads have 40 numbers \(model\.kv_channels\)"),
        (["model.activation=gelu"], r"no architecture of Hugging Face.*model\.activation='gelu'"),
        (["model.num_moe_experts=4"], r"vLLM takes no new weights of experts there"),
        (
            ["actors.defender.sampling_params.temperature=3"],
            r"actors\.defender.*temperature=3.* not between 0\.01 and 2",
        ),
        (["actors.attacker.sampling_params.temperature=0.001"], r"temperature=0\.001 is not between 0\.01 and 2"),
        (["model.qkv_bias=true"], r"model\.qkv_bias=true, which is Qwen2 there, and model\.kv_channels=32"),
        (ASKS_FOR_LOGPROBS, r"grpo\.tis_clip=2.*actors\.attacker has temperature=0\.8.*min_length=1"),
        (
            [
                "model.peft.peft_scheme=lora",
                "model.peft.lora_tuning.adapter_dim=1024",
                *(f"actors.{role}.restore_from_path=runs/base" for role in ("attacker", "defender")),
            ],
            r"adapter_dim=1024 is more than 512",
        ),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("magic_sandbox", [*BASE, *words])


def test_on_a_gpu_one_engine_plays_both_roles() -> None:
    words = ["backend=megatron", "generation.engine=vllm", "model.transformer_engine=false"]
    words += ["data.train_files=[/seeds.jsonl]", "judge.urls=[http://j:1]"]
    words += [f"actors.{role}.restore_from_path=/base" for role in ("attacker", "defender")]
    assert compose("magic_8b_lora", words)
    with pytest.raises(ConfigError, match=r"on a GPU one engine plays both roles, and these differ .*adapter_dim"):
        compose("magic_8b_lora", [*words, "actors.attacker.model.peft.lora_tuning.adapter_dim=256"])


def test_vllm_has_log_probabilities_where_nothing_restricts_sampling() -> None:
    free = [f"actors.{role}.length_params.min_length=0" for role in ("attacker", "defender")]
    assert compose("magic_sandbox", [*BASE, *ASKS_FOR_LOGPROBS, *free]).grpo.tis_clip == 2


def test_a_served_actor_decodes_natively() -> None:
    with pytest.raises(ConfigError, match=r"generation\.engine=vllm: a served actor decodes natively"):
        compose("magic_sandbox", BASE, command="serve")


def test_the_old_key_of_the_engine_names_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"generation\.trt_llm\.enable; did you mean generation\.engine"):
        compose("magic_sandbox", ["generation.trt_llm.enable=true"])


def test_the_head_sizes_are_those_of_attention_kernels() -> None:
    assert all(size % 16 == 0 for size in VLLM_CPU_HEADS)
