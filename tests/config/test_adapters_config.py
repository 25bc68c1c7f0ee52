"""What may be set of adapters, and what is said instead."""

from __future__ import annotations

import pytest

from nemo_magic.config import ConfigError, MagicConfig, compose, role_model
from nemo_magic.config.adapters import shares_base
from nemo_magic.config.validation import models
from nemo_magic.runtime.resume import differences, may_differ

BASE = [
    "model.peft.peft_scheme=lora", "actors.attacker.restore_from_path=/base", "actors.defender.restore_from_path=/base",
]  # fmt: skip


def composed(*overrides: str, command: str = "train") -> MagicConfig:
    return compose("magic_sandbox", [*BASE, *overrides], command=command)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["trainer.devices=2", "model.tensor_model_parallel_size=2", "model.peft.lora_tuning.adapter_dim=5"],
            "adapter_dim=5 is not divisible by model.tensor_model_parallel_size=2: try 4 or 6",
        ),
        (["actors.attacker.restore_from_path=null"], "set actors.attacker.restore_from_path"),
        (["model.activation=swiglu"], "set it to fast-swiglu"),
        (["grpo.kl_beta=0.1", "grpo.reference_every=2"], "grpo.reference_every=2 moves a reference policy"),
        (["model.optim.name=megatron_fused_adam"], "set it to cpu_fused_adam"),
        (["model.optim.name=mcore_distributed_optim"], "learn by model.optim.name=mcore_distributed_optim, set it to"),
        (["model.peft.lora_tuning.target_modules=[attention_kv]"], "target_modules='attention_kv' must be one of"),
        (["model.peft.lora_tuning.target_modules=[]"], "adapts nothing"),
        (["model.peft.lora_tuning.adapter_dropout=1"], "adapter_dropout=1.0 must be at least 0 and below 1"),
        (["model.peft.lora_tuning.layer_selection=[1]"], "every layer has adapters of its own"),
        (["model.peft.lora_tuning.weight_tying=true"], "every layer has adapters of its own"),
        (["model.peft.lora_tuning.variant=canonical"], "variant='canonical' must be one of: nemo"),
        (["model.peft.peft_scheme=ptuning"], "peft_scheme='ptuning' must be one of: none, lora"),
        (
            ["model.peft.peft_scheme=none", "actors.attacker.model.peft.restore_from_path=/adapters"],
            "attacker: model.peft.restore_from_path=/adapters are adapters",
        ),
        (
            ["actors.share_base=true", "actors.defender.restore_from_path=/other"],
            "are different weights: set them equal",
        ),
        (
            ["actors.share_base=true", "actors.defender.model.peft.peft_scheme=none"],
            "the defender has no adapters, set actors.defender.model.peft.peft_scheme=lora",
        ),
        (
            ["actors.share_base=true", "actors.defender.model.rotary_base=5"],
            "model.rotary_base differs between the roles",
        ),
        (["actors.share_base=true", "ablation=self_play"], "nobody to share with"),
    ],
)
def test_what_adapters_cannot_be_is_refused_with_what_to_set(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert said in str(caught.value)


def test_an_optimizer_that_adapters_cannot_learn_by_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(
            "magic_8b",
            [*BASE, "generation.engine=native", "data.train_files=[/s]", "judge.urls=[http://j]"],
            command="plan",
        )
    assert "cannot learn by model.optim.name=distributed_fused_adam, set it to fused_adam" in str(caught.value)


def test_both_roles_share_a_base_where_they_can() -> None:
    def shares(*overrides: str) -> bool:
        cfg = composed(*overrides)
        return shares_base(cfg, models(cfg))

    assert shares()
    assert shares("actors.attacker.model.peft.lora_tuning.adapter_dim=8", "actors.attacker.model.optim.lr=1")
    assert not shares("actors.share_base=false")
    assert not shares("actors.defender.restore_from_path=/other")
    assert not shares("actors.defender.model.peft.peft_scheme=none")


def test_adapters_learn_ten_times_as_fast_where_no_rate_is_given() -> None:
    null = ["model.optim.lr=null", "actors.attacker.model.optim.lr=null"]
    full = role_model(composed(*null, "model.peft.peft_scheme=none"), "attacker").optim
    lora = role_model(composed(*null), "attacker").optim
    assert (full.lr, lora.lr) == (1e-6, 1e-5)
    assert lora.sched.min_lr == lora.lr


def test_short_names_of_layers_are_nemos() -> None:
    def targets(names: str) -> tuple[str, ...]:
        return composed(f"model.peft.lora_tuning.target_modules={names}").model.peft.lora_tuning.targets

    assert targets("[all]") == ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2")
    assert targets("[mlp_fc2,mlp,attention_qkv]") == ("mlp_fc2", "mlp_fc1", "attention_qkv")


def test_a_run_may_go_on_from_where_its_adapters_are_now() -> None:
    here = {"model": {"peft": {"restore_from_path": "/a"}}, "actors": {"share_base": None}}
    there = {"model": {"peft": {"restore_from_path": "/b"}}, "actors": {"share_base": False}}
    assert not list(differences(here, there, may_differ("train")))
    own = {"actors": {"defender": {"model": {"peft": {"restore_from_path": "/a"}}}}}
    assert not list(differences(own, {"actors": {"defender": {"model": {}}}}, may_differ("train")))
    assert not list(differences({"actors": {"defender": {"model": {}}}}, own, may_differ("train")))
    other = {"model": {"peft": {"lora_tuning": {"adapter_dim": 4}}}}
    assert [
        key
        for key, *_ in differences({"model": {"peft": {"lora_tuning": {"adapter_dim": 8}}}}, other, may_differ("train"))
    ] == ["model.peft.lora_tuning.adapter_dim"]
