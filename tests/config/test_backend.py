"""What a backend cannot do is refused by name, before anything is built."""

from __future__ import annotations

import pytest

from nemo_magic.config import ConfigError, compose

REFUSED = {
    "generation.engine=trt_llm": "backend=megatron with generation.engine=trt_llm: its exporter is NeMo's; set it to",
    "model.tokenizer.library=sentencepiece": "backend=megatron with model.tokenizer.library=sentencepiece: set it to",
    "model.name=other": "backend=megatron with model.name=other: not there yet",
    "model.sequence_parallel=true": "backend=megatron with model.sequence_parallel=true: not there yet",
    "model.optim.name=mcore_distributed_optim": "backend=megatron with model.optim.name=mcore_distributed_optim and",
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


def test_a_plan_may_name_either_backend() -> None:
    overrides = ["backend=megatron", "generation.engine=native"]
    assert compose("magic_8b", overrides, command="plan").backend == "megatron"
