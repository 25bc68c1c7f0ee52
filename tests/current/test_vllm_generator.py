"""vLLM in the process of the ranks: it samples from the weights that learn, and says so where it does not."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_magic.report.records import METRICS_FILE
from nemo_magic.runtime.checkpoint_paths import COMMITTED, FOLDER
from tests.current import lanes

pytestmark = [pytest.mark.process, pytest.mark.current, pytest.mark.timeout(1800)]

LAYOUTS = {
    "tp1": ["trainer.devices=1"],
    "tp2": ["trainer.devices=2", "model.tensor_model_parallel_size=2"],
    "pp2": ["trainer.devices=2", "model.pipeline_model_parallel_size=2"],
}
# vLLM's attention on CPU has no head of 24 numbers, as the sandbox's has.
MODEL = [
    "backend=megatron", "generation.engine=vllm", "model.num_layers=2", "model.kv_channels=32",
    "model.num_query_groups=2",
]  # fmt: skip
ADAPTERS = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=4"]
TIED = [*LAYOUTS["tp2"], "model.share_embeddings_and_output_weights=true"]
CASES = {**LAYOUTS, "tied": TIED, "adapters": LAYOUTS["tp2"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sandbox, and weights for both roles."""
    home = tmp_path_factory.mktemp("vllm")
    small = [f"sandbox.folder={home / 'sandbox'}", "sandbox.attack_rows=400", "sandbox.defender_rows=400"]
    lanes.run("megatron", "sandbox", "-cn", "magic_sandbox", "backend=megatron", *small)
    lanes.run(
        "megatron", "sft", "-cn", "sft_sandbox_attacker", *MODEL, *small, "sft.max_steps=40", "sft.batch_size=64",
        f"exp_manager.explicit_log_dir={home / 'warm'}",
    )  # fmt: skip
    return home


@pytest.fixture(scope="module", params=list(CASES))
def found(home: Path, request: pytest.FixtureRequest) -> Any:
    """What ``tests.current.vllm_rank`` found at a layout."""
    case: str = request.param
    start = home / "warm" / "weights" if case == "adapters" else "null"
    words = [
        *MODEL, *CASES[case], *(ADAPTERS if case == "adapters" else []), f"sandbox.folder={home / 'sandbox'}",
        "model.init_method_std=0.3", "actors.attacker.length_params.min_length=0",
        *(f"actors.{role}.restore_from_path={start}" for role in ("attacker", "defender")),
    ]  # fmt: skip
    out = home / f"{case}.pt"
    lanes.run_ranks("megatron", "tests.current.vllm_rank", [str(out), *words], 1 if case == "tp1" else 2)
    return torch.load(out) | {"case": case}


def test_the_sampled_tokens_have_the_log_probabilities_that_are_trained_on(found: Any) -> None:
    for which in ("first", "second", "greedy", "top", "moved"):
        rollout = found[which]
        sampled = [value for row in rollout["logprobs"] for value in row]
        trained = [value for row in rollout["trained"] for value in row]
        assert len(sampled) == sum(map(len, rollout["ids"])) > 6
        assert sampled == pytest.approx(trained, abs=5e-5)


def test_greedy_tokens_are_those_of_native_decoding(found: Any) -> None:
    assert found["greedy"]["ids"] == found["native"]


def test_a_row_is_decided_by_its_prompt_its_seed_and_the_weights(found: Any) -> None:
    assert found["again"]["ids"] == found["first"]["ids"]
    assert found["again"]["logprobs"] == found["first"]["logprobs"]
    assert found["first"]["ids"][0] != found["first"]["ids"][4]  # the same prompt, another seed
    assert found["second"]["ids"] != found["first"]["ids"] != found["moved"]["ids"]
    assert found["same_states"]


def test_an_engine_is_refitted_when_it_holds_other_weights_and_only_then(found: Any) -> None:
    refits = {which: found[which]["metrics"]["generation/refits"] for which in ("first", "again", "second", "moved")}
    assert refits == {"first": 1, "again": 0, "second": 1, "moved": 1}
    assert 0 < found["moved"]["metrics"]["generation/refit_difference"] < 1e-4
    assert found["moved"]["metrics"]["timers/refit"] > 0
    assert found["too_early"] == "generate() before load(actor)"
    assert "is at weights version" in found["stale"]


def test_a_string_ends_a_response_where_it_is_said(found: Any) -> None:
    stopped, whole = found["stopped"], found["greedy"]
    for short, long, ended, text in zip(stopped["ids"], whole["ids"], stopped["ended"], stopped["texts"], strict=True):
        assert long[: len(short)] == short
        assert found["word"] not in text
        assert ended or short == long
    assert len(stopped["ids"][0]) <= found["word_at"] + 1


def test_what_a_refit_leaves_wrong_is_found(found: Any) -> None:
    if found["case"] == "adapters":
        assert "stale_head" not in found  # nothing but adapters is written
        return
    for fault in ("stale_head", "swapped_layers", "missing_shard"):
        assert "after a refit vLLM scores 47 tokens by" in found[fault], fault
    assert found["mended"]["metrics"]["generation/refits"] == 4


def test_log_probabilities_of_another_temperature_than_that_of_training_are_not_given(found: Any) -> None:
    assert found["cold"] == [()] * 6


GAME = [
    "game.max_steps=4", "game.schedule.freq=2", "game.batch_size=8", "game.val_check_interval=2",
    "game.num_val_samples=8",
    "game.crossplay.enabled=false", "game.strategy_sweep=null", "grpo.tis_clip=2",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=1", "exp_manager.create_report=false",
    "exp_manager.checkpoint_callback_params.keep_last=10", "exp_manager.create_tensorboard_logger=false",
]  # fmt: skip


def _figures(folder: Path) -> list[dict[str, Any]]:
    slow = ("timers/", "memory/", "throughput/", "judge", "time")
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(slow)} for row in rows]


def _game(home: Path, name: str, *words: str) -> list[str]:
    weights = home / "warm" / "weights"
    return [
        "train", "-cn", "magic_sandbox", f"name={name}", f"exp_manager.explicit_log_dir={home / name}",
        f"sandbox.folder={home / 'sandbox'}", *MODEL, *GAME, *words,
        *(f"actors.{role}.restore_from_path={weights}" for role in ("attacker", "defender")),
    ]  # fmt: skip


def test_a_game_that_is_killed_goes_on_bit_for_bit_and_weighs_by_vllms_log_probabilities(home: Path) -> None:
    layout = LAYOUTS["tp2"]
    lanes.run("megatron", *_game(home, "whole", *layout))
    killed = home / "killed"
    process = lanes.start("megatron", _game(home, "killed", *layout), home / "killed.log")
    deadline = time.monotonic() + 600
    while not (killed / FOLDER / "step_000002" / COMMITTED).exists() and process.poll() is None:
        assert time.monotonic() < deadline, (home / "killed.log").read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lanes.run("megatron", *_game(home, "killed", *layout))
    whole, resumed = _figures(home / "whole"), _figures(killed)
    assert [row["step"] for row in whole] == [0, 1, 2, 3, 4]
    assert resumed == whole
    for row in whole[1:]:
        assert row["train_optim/mismatch"] == pytest.approx(1.0, abs=1e-4)
        assert math.isfinite(row["train_optim/loss"])
