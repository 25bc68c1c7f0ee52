"""Shapes come from Megatron: published counts to the digit, and what a real rank holds to the byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_magic.compat.meta import rank_of
from nemo_magic.model_config import LoraConfig, ModelConfig, PeftConfig
from nemo_magic.planner.shapes import measure, total_parameters
from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig
from tests import zygote
from tests.planner.worlds import ROWS, TOKENS, WORLDS, planned_model
from tests.presets import model_preset

PUBLISHED = {
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "llama33_70b": 70_553_706_496,
    "mistral_7b": 7_248_023_552,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen25_7b": 7_615_616_512,
    "qwen25_14b": 14_770_033_664,
    "qwen25_72b": 72_706_203_648,
}
"""Parameters of the published checkpoints."""


def preset(name: str) -> ModelConfig:
    model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), model_preset(name)))
    assert isinstance(model, ModelConfig)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_presets_parameters_are_those_of_the_published_weights(name: str) -> None:
    model = preset(name)
    assert model.vocab_size is not None
    assert total_parameters(model, model.vocab_size) == PUBLISHED[name]


def test_shards_hold_the_whole_model_and_norms_on_every_rank() -> None:
    model = preset("llama31_70b")
    shapes = measure(model, 128256, 8, 4, 1, 512)
    norms = (2 * model.num_layers + 1) * model.hidden_size
    assert shapes.rank_parameters * 8 == PUBLISHED["llama31_70b"] + 7 * norms
    assert [shapes.parameters(stage) for stage in range(4)] == [
        20 * shapes.layer.parameters + end for end in (shapes.first.parameters, 0, 0, shapes.last.parameters)
    ]


@pytest.mark.slow
def test_full_recompute_keeps_a_layers_input_and_runs_it_again() -> None:
    model = preset("llama31_70b")
    full = measure(model, 128256, 8, 4, 1, 4096)
    none = measure(replace(model, activations_checkpoint_granularity=None), 128256, 8, 4, 1, 4096)
    assert full.layer.kept == 4096 // 8 * 8192 * 2 == full.hidden // 8
    assert full.layer.recomputed == none.layer.kept - full.layer.kept
    assert none.layer.recomputed == 0
    assert full.layer.backward - none.layer.backward == pytest.approx(none.layer.forward)


def test_a_layer_computes_six_flops_a_parameter_and_token_beside_attention() -> None:
    model = replace(preset("llama31_8b"), activations_checkpoint_granularity=None)
    layer = measure(model, 128256, 1, 1, 1, 16).layer  # so short that attention is nothing
    products = layer.parameters - 2 * model.hidden_size
    assert layer.forward == pytest.approx(2 * products * 16, rel=1e-3)
    assert layer.backward == pytest.approx(4 * products * 16, rel=1e-3)


def test_more_rows_are_as_many_times_one_row() -> None:
    model = preset("llama31_8b")
    scaled, three = measure(model, 128256, 4, 2, 1, 256).times(3), measure(model, 128256, 4, 2, 3, 256)
    # Rotary angles are shared by the rows too, and are counted with the layer that is run again.
    assert scaled.layer.recomputed == pytest.approx(three.layer.recomputed, rel=0.02)
    assert replace(scaled, layer=three.layer) == three
    assert replace(scaled.layer, recomputed=three.layer.recomputed) == three.layer


def test_everything_is_put_back_when_a_rank_has_been_played() -> None:
    before = (torch.cuda.current_device, torch.Tensor.cuda, torch.distributed.new_group)
    with rank_of(4, 2, 1):
        assert torch.distributed.get_world_size() == 8
        assert torch.zeros(2, device="cuda").device.type == "meta"
    assert not torch.distributed.is_initialized()
    assert (torch.cuda.current_device, torch.Tensor.cuda, torch.distributed.new_group) == before
    assert torch.zeros(2).device.type == "cpu"


def test_adapters_of_70b_are_half_a_percent_of_it_and_cut_evenly() -> None:
    model = preset("llama31_70b")
    adapted = replace(model, peft=PeftConfig("lora", None, LoraConfig(adapter_dim=32)))
    hidden, ffn, q, kv = 8192, 28672, 8192, 2 * 1024
    each = 32 * ((hidden + q + kv) + (q + hidden) + (hidden + 2 * ffn) + (ffn + hidden))
    assert total_parameters(adapted, 128256) == PUBLISHED["llama31_70b"] + 80 * each
    shapes = measure(adapted, 128256, 8, 4, 1, 512)
    assert shapes.rank_trainable * 8 == 80 * each
    assert measure(model, 128256, 8, 4, 1, 512).rank_trainable * 8 > 70e9


def test_the_backward_pass_through_a_frozen_layer_computes_no_gradient_of_its_weights() -> None:
    model = replace(preset("llama31_8b"), activations_checkpoint_granularity=None)
    adapted = replace(model, peft=PeftConfig("lora", None, LoraConfig(adapter_dim=32)))
    full, lora = (measure(one, 128256, 1, 1, 1, 16).layer for one in (model, adapted))
    assert lora.forward == pytest.approx(1.01 * full.forward, rel=0.005)
    assert lora.backward == pytest.approx(full.backward / 2, rel=0.06)


# --- a real world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planner")
    prepare(SandboxConfig(folder=str(folder / "sandbox"), attack_rows=10, defender_rows=10))
    return folder


@pytest.mark.process
@pytest.mark.parametrize("name", WORLDS)
def test_a_real_ranks_parameters_and_kept_activations_are_the_plans(folder: Path, name: str) -> None:
    tp, pp, _ = WORLDS[name]
    words = [str(folder), name, "nemo_aligner"]
    run = zygote.run(zygote.script(Path(__file__).with_name("real_world.py"), *words, ranks=tp * pp), timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    ranks: list[dict[str, Any]] = json.loads((folder / f"nemo_aligner-{name}.json").read_text())
    shapes = measure(planned_model(name), ranks[0]["vocabulary"], tp, pp, ROWS, TOKENS, torch.float32)
    for rank in ranks:
        stage = rank["stage"]
        assert rank["parameters"] == shapes.parameters(stage)
        assert rank["optimizer"] == shapes.trainable(stage)
        assert rank["kept"] == shapes.kept(stage)
    assert ranks[-1]["output"] == [ROWS, TOKENS, shapes.logits // (ROWS * TOKENS)]
