"""Impossible combinations are refused before a model is built, naming the numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from nemo_magic.actors.config import SamplingConfig
from nemo_magic.config import ConfigError, Parallelism, compose, describe, validate
from nemo_magic.config.evaluation import describe_evaluation
from nemo_magic.config.schema import TrainerConfig
from nemo_magic.game.episode import Role
from nemo_magic.game.rewards import RewardConfig
from nemo_magic.model_config import OptimConfig, SchedConfig
from nemo_magic.rl.config import GRPOConfig

GPU = ["cluster=slurm", "model.optim.name=distributed_fused_adam", "game.batch_size=64"]


def problems(*overrides: str, name: str = "magic_sandbox", command: str = "train") -> list[str]:
    """What is wrong with a configuration, line by line."""
    with pytest.raises(ConfigError) as caught:
        compose(name, list(overrides), command=command)
    return str(caught.value).splitlines()


def test_seeds_have_to_divide_by_the_data_parallel_ranks() -> None:
    assert problems("game.batch_size=63") == [
        "game.batch_size=63 is not divisible by 2 data-parallel ranks: try 62 or 64"
    ]


def test_rows_of_warm_up_have_to_divide_by_the_data_parallel_ranks() -> None:
    assert problems("sft.batch_size=3", name="sft_sandbox_attacker", command="sft") == [
        "sft.batch_size=3 is not divisible by 2 data-parallel ranks: try 2 or 4"
    ]


def test_minibatches_never_split_a_group() -> None:
    (problem,) = problems("game.batch_size=12", "grpo.minibatches=4")
    assert "grpo.minibatches=4 does not divide the 6 groups of a rank (game.batch_size=12 over 2" in problem
    assert problem.endswith("try game.batch_size=8 or 16")


def test_ranks_have_to_divide_by_tensor_and_pipeline_parallelism() -> None:
    (problem,) = problems("trainer.devices=6", "model.tensor_model_parallel_size=4")
    assert "trainer.num_nodes=1 × trainer.devices=6 = 6 ranks is not divisible by" in problem
    assert "model.tensor_model_parallel_size=4 × model.pipeline_model_parallel_size=1 = 4" in problem


@pytest.mark.parametrize("key", ["tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size"])
def test_both_roles_share_one_layout(key: str) -> None:
    found = problems(f"model.{key}=1", f"actors.attacker.model.{key}=3")
    assert f"model.{key} is 3 for the attacker, 1 for the defender: both roles live in one world, " in found[-1]


@pytest.mark.parametrize("role", ["attacker", "defender"])
def test_a_prompt_and_a_response_have_to_fit_the_model(role: str) -> None:
    limits = f"actors.{role}.length_params"
    (problem,) = problems(f"{limits}.max_length=20", f"{limits}.max_prompt_length=30")
    assert problem.startswith(f"{limits}: a prompt of 30")
    assert "a response of 20" in problem
    assert "are 50, more than model.encoder_seq_length=48: with this prompt max_length may be at most 18" in problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["model.num_layers=3", "model.pipeline_model_parallel_size=2"],
            "model.num_layers=3 is not divisible by model.pipeline",
        ),
        (
            ["model.num_attention_heads=3", "model.tensor_model_parallel_size=2"],
            "model.num_attention_heads=3 is not divisible",
        ),
        (
            ["model.ffn_hidden_size=255", "model.tensor_model_parallel_size=2"],
            "model.ffn_hidden_size=255 is not divisible",
        ),
        (
            ["model.num_query_groups=1", "model.tensor_model_parallel_size=2"],
            "model.num_query_groups=1 is not divisible",
        ),
        (["model.num_query_groups=3"], "model.num_attention_heads=4 is not divisible by model.num_query_groups=3"),
        (
            ["model.make_vocab_size_divisible_by=63", "model.tensor_model_parallel_size=2"],
            "model.make_vocab_size_divisible_by=63 is not divisible by model.tensor_model_parallel_size=2",
        ),
        (["model.hidden_size=98"], "model.hidden_size=98 is not divisible by model.num_attention_heads=4"),
        (["model.max_position_embeddings=32"], "model.encoder_seq_length=48 exceeds model.max_position_embeddings=32"),
        (["model.micro_batch_size=0"], "model.micro_batch_size=0 must be at least 1"),
        (["model.virtual_pipeline_model_parallel_size=2"], "model.virtual_pipeline_model_parallel_size=2"),
        (["model.optim.name=distributed_fused_adam"], "model.optim.name=distributed_fused_adam needs a GPU"),
        (["model.transformer_engine=true"], "model.transformer_engine=true needs a GPU"),
        (["model.sequence_parallel=true"], "model.sequence_parallel=true needs a GPU"),
        (["cluster=slurm"], "model.optim.name=cpu_fused_adam exists where trainer.accelerator=cpu"),
        (["judge.launch=false"], "judge.urls is empty and judge.launch=false"),
        (["rewards.format_defender=0.5"], "rewards.format_defender=0.5 is paid for tags that only game.defender_cot"),
        (["ablation=self_play", "game.max_turns=3"], "game.self_play=true with game.max_turns=3: an older attacker"),
    ],
)
def test_a_fault_of_the_shared_configuration_is_named_once(overrides: list[str], problem: str) -> None:
    (found,) = problems(*overrides)
    assert found.startswith(problem)


def test_a_fault_of_one_role_is_that_roles() -> None:
    (found,) = problems("actors.defender.model.hidden_size=98")
    assert found.startswith("defender: model.hidden_size=98")


def test_all_faults_are_named_at_once() -> None:
    found = problems("model.hidden_size=98", "actors.attacker.length_params.max_length=60", "judge.launch=false")
    assert len(found) == 3


def test_a_decay_needs_steps() -> None:
    sched = "actors.defender.model.optim.sched"
    (found,) = problems("game.max_steps=30", f"{sched}.constant_steps=15", f"{sched}.min_lr=1e-6")
    assert found.startswith("the defender takes 15 optimizer steps")
    (found,) = problems(f"{sched}.constant_steps=15")
    assert "nothing decays. Set min_lr below lr" in found
    (found,) = problems(f"{sched}.min_lr=1")
    assert "min_lr=1.0 must be between 0 and" in found


def test_the_global_batch_size_is_derived_and_a_given_one_has_to_agree() -> None:
    overrides = ["game.batch_size=16", "game.group_size=4", "grpo.minibatches=2"]
    compose("magic_sandbox", [*overrides, "model.global_batch_size=32"])
    (found,) = problems(*overrides, "model.global_batch_size=64")
    assert found.startswith("model.global_batch_size=64 is not game.batch_size=16 × game.group_size=4 / ")
    assert "= 32: leave it null" in found


def test_warm_up_checks_its_own_role_only() -> None:
    compose("sft_sandbox_attacker", ["actors.defender.model.hidden_size=98"], command="sft")
    assert problems("actors.attacker.model.hidden_size=98", name="sft_sandbox_attacker", command="sft")
    assert problems("sft.pool=null", name="sft_sandbox_attacker", command="sft") == [
        "sft.pool is null: name the file of rows to learn from"
    ]


def test_a_valid_configuration_stays_valid_when_checked_again() -> None:
    cfg = compose("magic_sandbox", [*GPU, "model.tensor_model_parallel_size=4", "trainer.num_nodes=2"])
    validate(cfg)


def test_parallelism_refuses_products_that_are_not_the_world() -> None:
    assert Parallelism.of(num_nodes=2, devices=8, tp=4, pp=2) == Parallelism(tp=4, pp=2, dp=2, world=16)
    with pytest.raises(ConfigError, match="tp × pp × dp = 2 × 2 × 2 = 8 is not the world size 4"):
        Parallelism(tp=2, pp=2, dp=2, world=4)
    with pytest.raises(ConfigError, match="dp=0 must be at least 1"):
        Parallelism(tp=1, pp=1, dp=0, world=1)
    with pytest.raises(ConfigError, match="trainer.devices=0 must be at least 1"):
        Parallelism.of(num_nodes=1, devices=0, tp=1, pp=1)


def test_the_plan_names_world_first_learner_rows_microbatches_and_judge() -> None:
    overrides = [*GPU, "model.tensor_model_parallel_size=2", "model.micro_batch_size=10", "game.group_size=4"]
    plan = describe(compose("magic_sandbox", overrides))
    assert "8 ranks (1 × 8) = TP 2 × PP 1 × DP 4" in plan
    assert "the defender learns first" in plan
    assert "256 rows: 64 on each data-parallel rank, as 7 × 10" in plan
    assert "rules, started with the run" in plan


def test_the_plan_says_where_a_remote_judge_is_and_who_it_has_to_be_not_the_guard_that_is_not_started() -> None:
    remote = [*GPU, "judge.launch=false", "judge.urls=[http://a:1,http://b:1]"]
    plan = describe(compose("magic_sandbox", remote))
    assert "judge     at http://a:1, http://b:1: any guard, all the same one (judge.expect is null)" in plan
    named = describe(compose("magic_sandbox", [*remote, "judge.expect=wildguard@7"]))
    assert "judge     at http://a:1, http://b:1: has to be wildguard@7" in named
    assert "rules" not in plan.partition("judge     ")[2].partition("\n")[0]


@pytest.mark.parametrize("role", list(Role))
def test_the_plan_says_which_role_a_server_plays(role: Role) -> None:
    remote = [f"actors.{role}.remote.urls=[http://s:1/v1,http://t:1/v1]", f"actors.{role}.remote.model=big",
              f"actors.{role}.restore_from_path=null", f"game.schedule.train_roles=[{role.opponent}]"]  # fmt: skip
    [line] = [line for line in describe(compose("magic_sandbox", remote)).splitlines() if line.startswith(role)]
    assert line == f"{role:<10}big at http://s:1/v1, http://t:1/v1: a server plays it; response ≤ " + (
        "20 tokens" if role is Role.ATTACKER else "8 tokens"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("accelerator", "optimizer"), [("cpu", "cpu_fused_adam"), ("gpu", "distributed_fused_adam")])
def test_an_evaluation_computes_on_an_accelerator_only_where_a_model_is_here(
    accelerator: str, optimizer: str, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    here = ["eval.tasks.validation.file=null", f"trainer.accelerator={accelerator}", f"model.optim.name={optimizer}"]
    none = "actors.defender.restore_from_path=null"
    served = [*here, none, "actors.defender.remote.urls=[http://s:1/v1]", "actors.defender.remote.model=big"]
    own = [*here, none, f"actors.defender.hf.path={tmp_path}"]
    kinds = (here, served, own, [*own, "actors.defender.hf.device=cuda:1"])
    told = [describe_evaluation(compose("eval_sandbox", words, command="evaluate")).splitlines()[0] for words in kinds]
    assert [line.partition("nemo-magic evaluate ")[2] for line in told] == [
        f"on {accelerator}, 1 × 2 ranks",
        "in one process, which asks servers",
        f"on {accelerator}, one process",
        "on cuda:1, one process",
    ]


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (OptimConfig, "lr"),
        (OptimConfig, "weight_decay"),
        (OptimConfig, "eps"),
        (SchedConfig, "min_lr"),
        (TrainerConfig, "gradient_clip_val"),
        (GRPOConfig, "kl_beta"),
        (GRPOConfig, "ratio_clip_high"),
        (GRPOConfig, "tis_clip"),
        (GRPOConfig, "skip_grad_norm"),
        (RewardConfig, "harm"),
        (SamplingConfig, "temperature"),
    ],
)
def test_a_number_that_single_precision_does_not_hold_is_refused(section: type, key: str) -> None:
    for value in (1e39, math.inf):
        with pytest.raises(ValueError, match=rf"{key}={re.escape(str(value))} must be .*float32"):
            section(**{key: value})
    section(**{key: 2.0})


def test_odd_numbers_of_an_optimizer_or_a_sampler_are_named_by_their_key() -> None:
    (problem,) = problems("actors.defender.model.optim.lr=1e39")
    assert "optim.lr=1e+39 must be greater than 0 and at most 3.4e+38, the largest number of float32" in problem
    with pytest.raises(ValueError, match=r"betas=\[0.9, inf\] must be two numbers in \[0, 1\)"):
        OptimConfig(betas=[0.9, math.inf])
    with pytest.raises(ValueError, match=r"temperature=1e-39 must be between 1e-6 and 1e6"):
        SamplingConfig(temperature=1e-39)
