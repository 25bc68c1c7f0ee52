"""Families that only backend=megatron has: what transformers computes, at every layout, from converted weights."""

from __future__ import annotations

import functools
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import AutoModelForCausalLM

from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.convert.peft_to_nemo import peft_to_nemo
from tests.convert.tiny_hf import MEGATRON_ONLY, ROWS, make, tensors
from tests.convert.tiny_peft import MODULES, make_peft
from tests.current import lanes
from tests.current.families import SAVES

pytestmark = [pytest.mark.process, pytest.mark.current, pytest.mark.timeout(900)]

WORLDS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}
LENGTH = 96


def tokens() -> torch.Tensor:
    return torch.randint(4, ROWS, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in hf/, converted ones in nemo/, and a configuration that has their models."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "own.yaml").write_text("defaults: [magic, _self_]\nname: own\n")
    for name in MEGATRON_ONLY:
        hf_to_nemo(make(folder / "hf", name), folder / "nemo" / name, say=lambda _: None)
        (folder / "conf" / "model" / f"{name}.yaml").write_text((folder / "nemo" / name / "model.yaml").read_text())
    peft = make_peft(folder / "peft", folder / "hf" / "qwen3_moe", left_out=MODULES["mlp"])
    peft_to_nemo(peft, folder / "adapters", folder / "nemo" / "qwen3_moe", say=lambda _: None)
    nemo_to_hf(folder / "adapters", folder / "merged", say=lambda _: None)
    torch.save(tokens(), folder / "tokens.pt")
    return folder


@pytest.fixture(scope="module")
def world_of(folder: Path) -> Any:
    """World → the folder of what it computed, once."""

    @functools.cache
    def run(world: str) -> Path:
        if world != SAVES:
            run(SAVES)
        tp, pp = WORLDS[world]
        lanes.run_ranks("megatron", "tests.current.families", [str(folder), world, str(tp), str(pp)], tp * pp)
        return folder / world

    return run


@functools.cache
def transformers_of(checkpoint: Path, rows: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of the mean negative log-likelihood, in fp32. ``rows``: over which the softmax is;
    those beyond the vocabulary have logits of 0."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32, attn_implementation="eager")
    logits = model(tokens()).logits
    padded = torch.nn.functional.pad(logits[:, :-1], (0, rows - ROWS))
    torch.nn.functional.cross_entropy(padded.flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return logits.detach(), gradients


def found(world: Path, name: str) -> dict[str, Any]:
    return json.loads((world / "found.json").read_text())[name]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MEGATRON_ONLY)
def test_an_actor_has_the_logits_of_transformers(folder: Path, world_of: Any, name: str, world: str) -> None:
    actors = torch.load(world_of(world) / f"{name}.pt")
    theirs, _ = transformers_of(folder / "hf" / name, actors.shape[-1])
    assert float(theirs.abs().max()) > 1
    assert float((actors[..., :ROWS] - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", MEGATRON_ONLY)
def test_what_is_written_is_laid_out_as_megatron_lays_it_out(folder: Path, world_of: Any, name: str) -> None:
    ours, megatrons = (
        FileSystemReader(one).read_metadata().state_dict_metadata
        for one in (folder / "nemo" / name, world_of("tp1") / f"{name}.gradients")
    )
    assert megatrons.keys() < ours.keys()
    for key, theirs in megatrons.items():
        mine = ours[key]
        assert type(mine) is type(theirs)
        if hasattr(theirs, "size"):
            assert (mine.size, mine.properties.dtype) == (theirs.size, theirs.properties.dtype)
            assert {(c.offsets, c.sizes) for c in mine.chunks} == {(c.offsets, c.sizes) for c in theirs.chunks}
    # What only transformer_engine's modules ask for.
    more = {key.split("._extra_state")[0].rsplit(".", 1)[-1] for key in ours.keys() - megatrons.keys()}
    assert more == {"core_attention", "q_layernorm", "k_layernorm", "pre_mlp_layernorm", "final_layernorm"}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MEGATRON_ONLY)
def test_every_gradient_is_that_of_transformers(
    folder: Path, world_of: Any, tmp_path: Path, name: str, world: str
) -> None:
    rows = torch.load(world_of(world) / f"{name}.pt").shape[-1]
    nemo_to_hf(world_of(world) / f"{name}.gradients", tmp_path / "hf", say=lambda _: None)
    ours, (_, theirs) = tensors(tmp_path / "hf"), transformers_of(folder / "hf" / name, rows)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert float((ours[key] - gradient).abs().max()) <= 2e-6, key
    assert any(gradient.abs().max() > 1e-3 for key, gradient in theirs.items() if "mlp.gate." in key)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MEGATRON_ONLY)
def test_what_is_sampled_has_the_log_probabilities_of_the_forward_pass(world_of: Any, name: str, world: str) -> None:
    rows, alone = (found(world_of(one), name)["decoded"] for one in (world, "tp1"))
    assert [len(row["ids"]) for row in rows] == [12] * 4
    for row in rows:
        assert row["sampled"] == pytest.approx(row["forward"], abs=1e-5)
    assert [row["ids"] for row in rows] == [row["ids"] for row in alone]


def refuse_other_updates(here: dict[str, Any], alone: dict[str, Any]) -> None:
    assert here["made"]
    assert math.isfinite(here["norm"])
    assert here["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    assert torch.tensor(here["after"]).sub(torch.tensor(alone["after"])).abs().max() < 1e-4


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MEGATRON_ONLY)
def test_an_update_and_one_after_a_checkpoint_of_tp1_are_the_same_at_every_layout(
    world_of: Any, name: str, world: str
) -> None:
    here, alone = (found(world_of(one), name) for one in (world, "tp1"))
    for update in ("first", "second"):
        refuse_other_updates(here[update], alone[update])
    assert torch.tensor(alone["first"]["after"]).sub(torch.tensor(alone["second"]["after"])).abs().max() > 1e-2


@pytest.mark.parametrize("world", WORLDS)
def test_adapters_on_the_attention_beside_experts_have_the_logits_of_merged_weights(
    folder: Path, world_of: Any, world: str
) -> None:
    actors = torch.load(world_of(world) / "adapted.pt")
    theirs, _ = transformers_of(folder / "merged", actors.shape[-1])
    without, _ = transformers_of(folder / "hf" / "qwen3_moe", actors.shape[-1])
    assert float((actors[..., :ROWS] - theirs).abs().max()) <= 1e-4
    assert float((theirs - without).abs().max()) > 0.1
    refuse_other_updates(*(found(world_of(one), "adapted") for one in (world, "tp1")))


def test_megatron_core_has_no_router_without_transformer_engine_until_it_is_mended() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import megatron.core.transformer.moe.moe_utils as experts\n"
        "from nemo_magic.compat.megatron import mend\n"
        "before = hasattr(experts, 'te_general_gemm'); mend(); print(before, experts.te_general_gemm)\n"
    )
    done = subprocess.run(
        [lanes.python_of("megatron"), "-c", program], capture_output=True, text=True, env=lanes.environment()
    )
    assert done.stdout == "False None\n", done.stderr
