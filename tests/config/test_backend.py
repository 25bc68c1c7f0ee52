"""What a backend cannot do is refused by name, before anything is built."""

from __future__ import annotations

import pytest

from nemo_magic.config import ConfigError, compose, describe

REFUSED = {
    "generation.engine=trt_llm": "backend=megatron with generation.engine=trt_llm: its exporter is NeMo's; set it to",
    "model.tokenizer.library=sentencepiece": "backend=megatron with model.tokenizer.library=sentencepiece: set it to",
    "model.name=other": "backend=megatron with model.name=other: not there yet",
    "model.optim.name=fused_adam": "accelerator=cpu: set it to cpu_fused_adam or mcore_distributed_optim",
}


def test_the_default_backend_is_nemo_aligner() -> None:
    assert compose("magic_sandbox").backend == "nemo_aligner"
    assert compose("magic_sandbox", ["backend=megatron"]).backend == "megatron"


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="^backend='other' must be one of: nemo_aligner, megatron$"):
        compose("magic_sandbox", ["backend=other"])


def test_adapters_beside_layers_of_transformer_engine_are_refused() -> None:
    overrides = ["backend=megatron", "model.peft.peft_scheme=lora", "model.transformer_engine=true"]
    with pytest.raises(ConfigError, match="model.peft.peft_scheme=lora and model.transformer_engine=true: not there"):
        compose("magic_sandbox", overrides)


@pytest.mark.parametrize("override", REFUSED)
def test_what_megatron_does_not_have_yet_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose("magic_sandbox", ["backend=megatron", override])
    assert REFUSED[override] in str(refused.value)


def test_the_distributed_optimizer_runs_on_cpu_without_nemo() -> None:
    assert compose("magic_sandbox", ["backend=megatron", "model.optim.name=mcore_distributed_optim"])


def test_a_plan_may_name_either_backend() -> None:
    overrides = ["backend=megatron", "generation.engine=native"]
    assert compose("magic_8b", overrides, command="plan").backend == "megatron"


EXPERTS = ["model.num_moe_experts=4"]
REFUSED_WITH_EXPERTS = {
    "model.transformer_engine=true": "model.num_moe_experts=4 with model.transformer_engine=true: not there yet",
    "model.bias=true": "model.num_moe_experts=4 with model.bias=true: not there yet",
    "model.sequence_parallel=true": "model.num_moe_experts=4 with model.sequence_parallel=true: not there yet",
    "model.activation=gelu": "model.num_moe_experts=4 with model.activation=gelu: experts are gated",
    "model.moe_router_topk=5": "model.moe_router_topk=5 is more than model.num_moe_experts=4",
    "model.moe_router_topk=1": "model.moe_router_topk=1 with model.moe_router_pre_softmax=false: the one expert",
    "model.moe_router_topk=0": "model.moe_router_topk=0 must be",
    "model.moe_ffn_hidden_size=33": "model.moe_ffn_hidden_size=33 is not divisible by model.tensor_model_parallel_size",
    "model.peft.peft_scheme=lora": "model.num_moe_experts=4 with adapters on mlp_fc1 and mlp_fc2: experts have none",
}


@pytest.mark.parametrize("override", REFUSED_WITH_EXPERTS)
def test_what_experts_cannot_have_is_refused_by_name(override: str) -> None:
    layout = ["trainer.devices=2", "model.tensor_model_parallel_size=2"]
    with pytest.raises(ConfigError) as refused:
        compose("magic_sandbox", ["backend=megatron", *EXPERTS, *layout, override])
    assert REFUSED_WITH_EXPERTS[override] in str(refused.value)


def test_experts_are_megatrons_alone_and_not_planned() -> None:
    with pytest.raises(
        ConfigError, match="model.num_moe_experts=4 with backend=nemo_aligner: .* take backend=megatron"
    ):
        compose("magic_sandbox", EXPERTS)
    with pytest.raises(ConfigError, match="model.num_moe_experts=4: nemo-magic plan knows no mixtures of experts"):
        compose("magic_sandbox", ["backend=megatron", *EXPERTS], command="plan")
    cfg = compose("magic_sandbox", ["backend=megatron", *EXPERTS])
    assert "layers × 96, 2 of 4 experts, from" in describe(cfg)
