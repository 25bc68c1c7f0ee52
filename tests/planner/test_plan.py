"""The plan: the arithmetic on shapes, what the presets take, and what a user is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nemo_magic import cli
from nemo_magic.config import ConfigError, MagicConfig, compose
from nemo_magic.config.hardware import HardwareConfig
from nemo_magic.game.episode import Role
from nemo_magic.model_config import ModelConfig
from nemo_magic.planner.estimate import Plan, plan_of
from nemo_magic.planner.memory import GIB
from nemo_magic.planner.published import (
    DECODE_STEPS,
    LLAMA_8B,
    LLAMA_70B,
    PRETRAINING,
    QWEN3_32B,
    REFIT,
    STEPS,
    decode_step,
    flops_reached,
    predict,
)
from nemo_magic.planner.search import best
from nemo_magic.planner.shapes import total_parameters

pytestmark = pytest.mark.slow

LLAMA = dict.fromkeys(Role, 128256)
QWEN = dict.fromkeys(Role, 151665)


def planned(name: str, *overrides: str, vocabularies: dict[Role, int] = LLAMA) -> Plan:
    return plan_of(compose(name, list(overrides), command="plan"), vocabularies)


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["plan", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


# --- what was published, and what we ship


def test_the_shares_that_are_reached_are_those_of_pre_training_serving_and_a_refit() -> None:
    hardware = HardwareConfig()
    assert hardware.flops_reached == pytest.approx(flops_reached(PRETRAINING, hardware), abs=0.005)
    for tp, measured in DECODE_STEPS.items():
        assert decode_step(hardware, tp) == pytest.approx(measured, rel=0.05)
    size, seconds = REFIT
    assert hardware.refit_gb_s == pytest.approx(size / seconds, rel=0.01)


def test_with_constants_from_elsewhere_the_published_70b_step_is_predicted_within_a_quarter_part_by_part() -> None:
    step = STEPS[0]
    found = predict(step, HardwareConfig())
    assert step.measured["step"] == 147
    assert found.keys() == step.measured.keys()
    for part, measured in step.measured.items():
        assert found[part] == pytest.approx(measured, rel=0.25), part


def test_a_plan_says_how_much_longer_the_published_steps_of_nemo_rl_took_than_predicted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = [step for step in STEPS if step.name.startswith("NeMo-RL")]
    assert len(steps) == 7
    longer = [step.measured["step"] / predict(step, HardwareConfig())["step"] - 1 for step in steps]
    assert min(longer) == pytest.approx(0.09, abs=0.005)
    assert max(longer) == pytest.approx(0.31, abs=0.005)
    status, out, _ = ran(capsys, "-cn", "magic_8b", "plan.search=false")
    assert status == 0
    assert "Published steps took 9 to 31 % longer" in out


@pytest.mark.parametrize(
    ("model", "parameters"),
    [(LLAMA_70B, 70_553_706_496), (LLAMA_8B, 8_030_261_248), (QWEN3_32B, 32_762_123_264 - 64 * 2 * 128)],
)
def test_the_models_of_published_steps_have_the_published_parameters(model: ModelConfig, parameters: int) -> None:
    assert model.vocab_size is not None
    assert total_parameters(model, model.vocab_size) == parameters


@pytest.mark.parametrize(
    ("name", "overrides", "vocabularies"),
    [
        ("magic_8b", [], LLAMA),
        ("magic_14b", [], QWEN),
        ("magic_8b_lora", [], LLAMA),
        ("magic_70b_lora", [], LLAMA),
        *(("magic_70b", [f"trainer.num_nodes={nodes}"], LLAMA) for nodes in (8, 16, 32)),
    ],
)
def test_every_cluster_preset_fits_its_nodes(name: str, overrides: list[str], vocabularies: dict[Role, int]) -> None:
    assert planned(name, *overrides, vocabularies=vocabularies).fits


def test_70b_rows_of_full_length_do_not_fit_with_selective_recompute() -> None:
    overrides = ["model.activations_checkpoint_granularity=selective", "model.activations_checkpoint_method=null"]
    assert not planned("magic_70b", *overrides, "model.activations_checkpoint_num_layers=null").fits


def test_the_best_layout_fits_and_is_no_slower_than_the_presets() -> None:
    cfg = compose("magic_8b", ["trainer.num_nodes=2"], command="plan")
    layouts, own = best(cfg, LLAMA), plan_of(cfg, LLAMA)
    assert own.fits
    assert layouts
    assert all(plan.fits for plan in layouts)
    assert layouts == sorted(layouts, key=lambda plan: plan.step_seconds)
    assert layouts[0].step_seconds <= own.step_seconds
    assert all(plan.world.world == 16 for plan in layouts)


def test_two_roles_of_70b_are_adapters_on_one_base_on_one_node_of_eight_gpus() -> None:
    plan, full = planned("magic_70b_lora"), planned("magic_70b", "model.pipeline_model_parallel_size=1")
    assert plan.world.world == 8
    assert plan.fits
    assert not planned("magic_70b", "model.pipeline_model_parallel_size=1", "trainer.num_nodes=1").fits
    assert plan.memory["learning"]["weights"] == full.memory["learning"]["weights"] / 2
    assert plan.memory["starting"]["weights"] == full.memory["learning"]["weights"]
    assert set(plan.trainable.values()) == {351_272_960}
    assert plan.checkpoint == 2 * 351_272_960 * 14
    assert plan.memory["learning"]["optimizer"] == 351_272_960 / 8 * 12
    # The original of what an engine is fitted with waits on the host, once for both roles.
    assert plan.host["original of merged weights"] == 8 * plan.memory["learning"]["weights"]
    assert plan.host["reference weights"] == 0
    apart = planned("magic_70b_lora", "actors.share_base=false")
    assert apart.memory["learning"]["weights"] == full.memory["learning"]["weights"]
    assert "starting" not in apart.memory


def test_a_plan_says_how_much_of_a_model_learns(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "-cn", "magic_70b_lora", "plan.search=false")
    assert status == 0
    assert "Of these 351,272,960 learn; the rest is frozen, and there once" in out
    assert "A checkpoint: 9.84 GB" in out


# --- the arithmetic


def test_more_data_parallel_ranks_share_the_optimizer_and_nothing_else() -> None:
    one, two = planned("magic_70b"), planned("magic_70b", "trainer.num_nodes=16")
    for moment in one.memory:
        before, after = one.memory[moment], two.memory[moment]
        assert after["optimizer"] == pytest.approx(before["optimizer"] / 2)
        assert {k: v for k, v in after.items() if k != "optimizer"} == {
            k: v for k, v in before.items() if k != "optimizer"
        }
    assert two.checkpoint == one.checkpoint


NATIVE = "generation.engine=native"


def test_megatrons_gradients_of_both_roles_stay_on_the_device_whatever_the_optimizer() -> None:
    for optimizer in ("distributed_fused_adam", "mcore_distributed_optim", "fused_adam"):
        words = [NATIVE, f"model.optim.name={optimizer}", "model.activations_checkpoint_granularity=full"]
        theirs, ours = planned("magic_8b", *words), planned("magic_8b", "backend=megatron", *words)
        both = ours.memory["generating"]["weights"] / 2 * 4
        for moment in ("generating", "learning"):
            assert ours.memory[moment]["gradients"] == both
        stays = optimizer == "distributed_fused_adam"
        assert theirs.memory["generating"]["gradients"] == (both if stays else 0)
        assert theirs.memory["learning"]["gradients"] == (both if stays else both / 2)


@pytest.mark.parametrize(
    ("optimizer", "shared", "own"),
    [("distributed_fused_adam", 12, 0), ("mcore_distributed_optim", 12, 0), ("fused_adam", 0, 12)],
)
def test_megatrons_optimizers_hold_fp32_weights_and_both_moments(optimizer: str, shared: int, own: int) -> None:
    # In bf16 whatever NeMo's key for it says.
    words = ["backend=megatron", NATIVE, f"model.optim.name={optimizer}", "model.megatron_amp_O2=false"]
    plan = planned("magic_8b", *words, "hardware.memory_gib=1000")
    each = plan.memory["learning"]["weights"] / 4
    assert plan.memory["learning"]["optimizer"] == each * (shared / plan.world.dp + own)
    assert plan.host["frozen optimizers"] == 8 * plan.memory["learning"]["optimizer"]


VLLM = ("backend=megatron", "generation.engine=vllm")


def test_vllm_takes_its_share_of_the_device_and_leaves_while_a_role_learns() -> None:
    device = "hardware.memory_gib=100"
    native, plan = planned("magic_8b", "backend=megatron", NATIVE, device), planned("magic_8b", *VLLM, device)
    assert plan.memory["learning"] == native.memory["learning"]
    for moment in ("generating", "refitting"):
        parts = plan.memory[moment]
        assert parts["engine"] + parts["keys and values"] == pytest.approx(40 * GIB)
        assert "gathered weights" not in parts
    # At PP2 an engine has the layers of both stages, and each stage one of its own.
    deep = planned("magic_8b", *VLLM, "model.pipeline_model_parallel_size=2")
    assert deep.memory["generating"]["engine"] == pytest.approx(2 * deep.memory["generating"]["weights"] / 2, rel=0.1)


def test_rows_that_take_the_place_of_those_that_ended_wait_for_the_longest_once() -> None:
    few, many = (planned("magic_8b", *VLLM, f"generation.batch_size={rows}") for rows in (8, 512))
    batched = planned("magic_8b", "generation.batch_size=8")
    assert many.seconds["generate_defender"] < few.seconds["generate_defender"] < batched.seconds["generate_defender"]


def test_a_checkpoint_of_two_roles_has_weights_and_fp32_state_of_both() -> None:
    plan = planned("magic_70b")
    assert plan.checkpoint == pytest.approx(2 * 70_553_706_496 * 14, rel=0.001)  # norms are counted on every rank


def test_one_model_for_both_roles_is_there_once() -> None:
    both = planned("magic_8b")
    one = planned("magic_8b", "game.self_play=true", "actors.attacker.restore_from_path=null")
    assert one.memory["learning"]["weights"] == both.memory["learning"]["weights"] / 2
    assert one.checkpoint == both.checkpoint / 2
    assert "switch" not in one.seconds


def test_a_role_that_a_server_plays_is_on_no_device() -> None:
    remote = ["actors.attacker.remote.urls=[http://a:1/v1]", "actors.attacker.remote.model=m"]
    remote += ["actors.attacker.restore_from_path=null", "game.schedule.train_roles=[defender]"]
    plan = planned("magic_8b", *remote, vocabularies={Role.DEFENDER: 128256})
    assert set(plan.parameters) == {Role.DEFENDER}
    assert plan.memory["learning"]["weights"] == planned("magic_8b").memory["learning"]["weights"] / 2
    assert "generate_attacker" not in plan.seconds


def test_an_engine_that_stays_is_counted_while_a_role_learns() -> None:
    away, stays = planned("magic_8b"), planned("magic_8b", "generation.trt_llm.unload_engine_train=false")
    assert "engine" not in away.memory["learning"]
    assert stays.memory["learning"]["engine"] == away.memory["generating"]["engine"]


def test_a_reference_policy_costs_host_memory_and_a_pass() -> None:
    without, with_one = planned("magic_8b"), planned("magic_8b", "grpo.kl_beta=0.1")
    assert without.seconds["logprobs"] == without.host["reference weights"] == 0
    assert 0 < with_one.seconds["logprobs"] < with_one.seconds["update"]
    each_rank = with_one.memory["learning"]["weights"] / 2
    assert with_one.host["reference weights"] == pytest.approx(8 * 2 * each_rank)
    assert with_one.checkpoint == without.checkpoint


def test_a_reference_that_moves_is_in_float32_on_the_host_and_in_checkpoints() -> None:
    fixed = planned("magic_8b", "grpo.kl_beta=0.1")
    moving = planned("magic_8b", "grpo.kl_beta=0.1", "grpo.reference_every=10")
    assert moving.host["reference weights"] == 2 * fixed.host["reference weights"]
    both = 2 * total_parameters(compose("magic_8b", command="plan").model, 128256)
    assert moving.checkpoint - fixed.checkpoint == pytest.approx(4 * both, rel=1e-3)
    written = "checkpoint being written"
    grows = moving.host[written] / fixed.host[written]
    assert grows == pytest.approx(moving.checkpoint / fixed.checkpoint)
    assert moving.seconds["logprobs"] > fixed.seconds["logprobs"]
    assert moving.memory == fixed.memory


def test_an_entropy_bonus_takes_one_more_copy_of_the_logits() -> None:
    without, with_one = planned("magic_8b"), planned("magic_8b", "grpo.entropy_bonus=0.01")
    logits = [plan.memory["learning"]["logits"] for plan in (without, with_one)]
    assert logits[1] == pytest.approx(logits[0] * 28 / 26)


def test_attacks_of_a_defender_phase_written_at_once_cost_less_than_step_by_step() -> None:
    at_once, each = planned("magic_70b"), planned("magic_70b", "game.attack_prefetch_steps=1")
    ahead, step = at_once.per_role[Role.DEFENDER], each.per_role[Role.DEFENDER]
    assert ahead["generate_attacker"] < step["generate_attacker"] / 2
    assert ahead["refit"] < step["refit"]
    assert at_once.per_role[Role.ATTACKER] == each.per_role[Role.ATTACKER]


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("memory_gb_s", "generate_defender"),
        ("tflops", "update"),
        ("nvlink_gb_s", "update"),
        ("network_gb_s", "optimizer"),
        ("host_link_gb_s", "switch"),
        ("refit_gb_s", "refit"),
    ],
)
def test_better_hardware_is_faster_where_it_is_used(key: str, part: str) -> None:
    cfg = compose("magic_70b", ["hardware.layer_floor_us=0"], command="plan")
    faster: MagicConfig = replace(cfg, hardware=replace(cfg.hardware, **{key: getattr(cfg.hardware, key) * 2}))
    before, after = plan_of(cfg, LLAMA).seconds, plan_of(faster, LLAMA).seconds
    assert after[part] < before[part]
    assert all(after[name] <= before[name] for name in before)


# --- what is printed


def test_the_plan_says_every_part_what_it_assumed_and_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "-cn", "magic_70b", "cluster=dgx_h200", "plan.search=false")
    assert status == 0
    assert "magic_70b on 8 × 8 devices (DGX H200): TP 8 × PP 4 × DP 2" in out
    assert "70,553,706,496 parameters" in out
    for words in (
        "gathered weights", "keys and values", "frozen optimizers", "A checkpoint: 1.98 TB", "generate_attacker",
        "GPU-hours", "kWh", "Assumed of the texts", "Assumed of the hardware", "It fits: generating needs most",
    ):  # fmt: skip
        assert words in out


def test_what_does_not_fit_is_said_with_its_moment_and_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "-cn", "magic_8b", "hardware.memory_gib=40")
    assert status == 1
    assert "It does not fit: generating needs" in out
    assert "The fastest layouts that fit these nodes" in out or "No layout of these nodes fits" in out


def test_json_has_the_same_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "-cn", "magic_8b", "--json", "plan.search=false")
    found: dict[str, Any] = json.loads(out)["plan"]
    plan = planned("magic_8b")
    assert status == 0
    assert found["needed"] == plan.needed
    assert found["memory"]["learning"] == plan.memory["learning"]
    assert found["gpu_hours"] == pytest.approx(plan.gpu_hours)
    assert found["parameters"] == {"attacker": 8_030_261_248, "defender": 8_030_261_248}


def test_a_plan_needs_neither_weights_nor_seeds_nor_a_judge_but_a_vocabulary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, _, err = ran(capsys, "-cn", "magic_8b", "model.vocab_size=null", "model.tokenizer.type=/nowhere")
    assert status == 2
    assert "model.tokenizer.type=/nowhere cannot be read here" in err
    assert "model.vocab_size" in err


def test_a_plan_refuses_what_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = ran(capsys, "-cn", "magic_70b", "trainer.num_nodes=3")
    assert status == 2
    assert "not divisible" in err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hardware.tflops=0", "hardware.tflops=0"),
        ("hardware.flops_reached=1.5", "hardware.flops_reached=1.5 must be above 0 and at most 1"),
        ("plan.longest=0", "plan.longest=0"),
        ("plan.attack=0", "plan.attack=0 must be at least 1"),
    ],
)
def test_impossible_assumptions_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose("magic_8b", [override], command="plan")


@pytest.mark.parametrize("config", ["magic_sandbox", "magic_8b"])
def test_a_plan_without_gpus_says_that_it_cannot(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=1"]
    status, out, err = ran(capsys, "-cn", config, "cluster=cpu", *layout, "generation.engine=native")
    assert (status, out) == (2, "")
    assert "a plan counts GPUs (hardware.*), and trainer.accelerator=cpu has none" in err


@pytest.mark.parametrize(
    ("limits", "role", "counted"),
    [
        ("actors.attacker.length_params.max_length=64", "attacker", (300, 64)),
        ("actors.defender.length_params.max_prompt_length=50", "defender", (50, 400)),
        ("plan.reply=9999", "defender", (300, 6144)),
        ("plan.attack=6144", "attacker", (300, 6144)),
    ],
)
def test_the_lengths_in_the_text_are_those_that_were_counted(
    limits: str, role: str, counted: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = ran(capsys, "-cn", "magic_8b", "plan.search=false", limits)
    assert f"the {role} reads {counted[0]} and writes {counted[1]} tokens" in out
    assert (f"The {role} cannot have texts of" in out) is (limits != "plan.attack=6144")
    _, out, _ = ran(capsys, "-cn", "magic_8b", "plan.search=false", limits, "--json")
    assert json.loads(out)["plan"]["lengths"][role] == list(counted)
