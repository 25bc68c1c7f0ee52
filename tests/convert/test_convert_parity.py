"""An actor that starts from a converted checkpoint computes what transformers computes, at every layout."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.convert.peft_to_nemo import peft_to_nemo
from nemo_magic.hf_format.errors import ConvertError
from tests import zygote
from tests.convert.tiny_hf import CHECKPOINTS, LLAMA31_ROPE, ROWS, SHAPE, make, tensors
from tests.convert.tiny_peft import make_peft

pytestmark = pytest.mark.process

# name: (ranks, TP, PP)
WORLDS = {"tp1": (1, 1, 1), "tp2": (2, 2, 1), "tp2_pp2": (4, 2, 2)}
LENGTH = 640
"""Long enough for Llama-3.1's scaling of the slow frequencies to matter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in hf/, converted ones in nemo/, and per world what it computed."""
    folder = tmp_path_factory.mktemp("convert")
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "own.yaml").write_text("defaults: [magic, _self_]\nname: own\n")
    for name in CHECKPOINTS:
        hf_to_nemo(make(folder / "hf", name), folder / "nemo" / name, say=lambda _: None)
        model = (folder / "nemo" / name / "model.yaml").read_text()
        (folder / "conf" / "model" / f"{name}.yaml").write_text(model)
    hf_to_nemo(folder / "hf" / "qwen", folder / "qwen.nemo", say=lambda _: None)
    hf_to_nemo(make(folder / "bf16", "qwen", torch.bfloat16), folder / "nemo" / "bf16", say=lambda _: None)
    peft_to_nemo(
        make_peft(folder / "peft", folder / "hf" / "llama31"), folder / "adapters", folder / "nemo" / "llama31",
        say=lambda _: None,
    )  # fmt: skip
    nemo_to_hf(folder / "adapters", folder / "merged", say=lambda _: None)
    torch.save(tokens(), folder / "tokens.pt")
    for name, (ranks, tp, pp) in WORLDS.items():
        program = Path(__file__).with_name("convert_world.py")
        run = zygote.run(zygote.script(program, str(folder), name, str(tp), str(pp), ranks=ranks), timeout=300)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return folder


def tokens() -> torch.Tensor:
    return torch.randint(4, ROWS, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@functools.cache
def logits_of(checkpoint: Path) -> torch.Tensor:
    """By transformers, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(tokens()).logits


def difference(folder: Path, result: str, checkpoint: Path) -> float:
    """The largest between an actor's logits and those of transformers, over the published vocabulary."""
    actors = torch.load(folder / result)
    assert actors.shape[-1] % 128 == 0
    assert not actors[..., ROWS:].any() or "learnt" in result
    return float((actors[..., :ROWS] - logits_of(checkpoint)).abs().max())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_actor_has_the_logits_of_transformers(folder: Path, name: str, world: str) -> None:
    assert difference(folder, f"{world}/{name}.pt", folder / "hf" / name) <= 1e-5


@pytest.mark.parametrize("world", WORLDS)
def test_an_actor_with_converted_adapters_has_the_logits_of_transformers_with_merged_weights(
    folder: Path, world: str
) -> None:
    assert difference(folder, f"{world}/adapted.pt", folder / "merged") <= 1e-4
    assert float((logits_of(folder / "merged") - logits_of(folder / "hf" / "llama31")).abs().max()) > 0.1


@pytest.mark.parametrize(("name", "scaling"), [("llama31", None), ("llama32", LLAMA31_ROPE)])
def test_the_positions_reach_where_rope_scaling_and_its_factor_matter(folder: Path, name: str, scaling: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "hf" / name, rope_scaling=scaling)
    with torch.no_grad():
        other = model(tokens()).logits
    assert float((other - logits_of(folder / "hf" / name)).abs().max()) > 1e-3


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["llama32", "mistral", "qwen3"])
def test_a_family_is_decoded_with_the_log_probabilities_of_its_forward_pass(
    folder: Path, name: str, world: str
) -> None:
    rows = json.loads((folder / world / "decoded.json").read_text())[name]
    assert [len(row["ids"]) for row in rows] == [12] * 4
    for row in rows:
        assert row["sampled"] == pytest.approx(row["forward"], abs=1e-4)
    assert [row["ids"] for row in rows] == [
        row["ids"] for row in json.loads((folder / "tp1" / "decoded.json").read_text())[name]
    ]


@pytest.mark.parametrize("world", WORLDS)
def test_norms_of_queries_and_keys_have_the_gradients_of_transformers_on_every_rank(folder: Path, world: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder / "hf" / "qwen3", torch_dtype=torch.float32, attn_implementation="eager"
    )
    rows = tokens()
    padded = torch.load(folder / "tp1" / "qwen3.pt").shape[-1]
    # Megatron's softmax is over the padded vocabulary.
    logits = torch.nn.functional.pad(model(rows).logits[:, :-1], (0, padded - ROWS))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
    found = 0
    for path in (folder / world).glob("gradients_*.pt"):
        for (layer, which), gradient in torch.load(path).items():
            theirs = getattr(model.model.layers[layer].self_attn, f"{which}_norm").weight.grad
            assert float((gradient - theirs).abs().max()) <= 1e-6 + 1e-4 * float(theirs.abs().max())
            found += 1
    tp = WORLDS[world][1]
    assert found == 2 * SHAPE["num_hidden_layers"] * tp


def test_a_nemo_file_has_the_logits_of_transformers(folder: Path) -> None:
    assert difference(folder, "tp1/packed.pt", folder / "hf" / "qwen") <= 1e-5


def test_an_actor_in_fp32_starts_from_weights_in_bf16(folder: Path) -> None:
    assert difference(folder, "tp1/bf16.pt", folder / "bf16" / "qwen") <= 1e-5


def test_nemo_opens_a_nemo_file_by_its_own_configuration(folder: Path) -> None:
    state, published = torch.load(folder / "tp1" / "by_nemo.pt"), tensors(folder / "hf" / "qwen")
    assert torch.equal(
        state["decoder.layers.2.mlp.linear_fc2.weight"], published["model.layers.2.mlp.down_proj.weight"]
    )
    assert torch.equal(state["embedding.word_embeddings.weight"][:ROWS], published["model.embed_tokens.weight"])


def test_what_is_written_is_laid_out_as_megatron_lays_it_out(folder: Path) -> None:
    ours = FileSystemReader(folder / "nemo" / "qwen").read_metadata()
    megatrons = FileSystemReader(folder / "megatrons_own").read_metadata()
    assert megatrons.state_dict_metadata.keys() < ours.state_dict_metadata.keys()
    for key, theirs in megatrons.state_dict_metadata.items():
        mine = ours.state_dict_metadata[key]
        assert type(mine) is type(theirs)
        if hasattr(theirs, "size"):
            assert (mine.size, mine.properties.dtype) == (theirs.size, theirs.properties.dtype)
            assert {(c.offsets, c.sizes) for c in mine.chunks} == {(c.offsets, c.sizes) for c in theirs.chunks}
    # What only transformer_engine's modules ask for.
    more = ours.state_dict_metadata.keys() - megatrons.state_dict_metadata.keys()
    assert {key.split("._extra_state")[0].rsplit(".", 1)[-1] for key in more} == {"core_attention", "final_layernorm"}


@pytest.mark.parametrize("role", ["attacker", "defender"])
@pytest.mark.parametrize("source", ["run/snapshots/{role}/round_0002", "run/checkpoints/step_000004", "run"])
def test_what_was_learnt_at_tp2_comes_back_with_its_logits(
    folder: Path, tmp_path: Path, source: str, role: str
) -> None:
    nemo_to_hf(folder / source.format(role=role), tmp_path / "hf", role=role, say=lambda _: None)
    assert difference(folder, f"tp2/learnt_{role}.pt", tmp_path / "hf") <= 2e-5


@pytest.mark.parametrize("source", ["warm", "warm/weights", "by_nemo.nemo"])
def test_a_warm_up_and_nemos_own_file_come_back(folder: Path, tmp_path: Path, source: str) -> None:
    hf = folder / "hf" / "qwen" if source.endswith(".nemo") else None
    nemo_to_hf(folder / source, tmp_path / "hf", hf=hf, say=lambda _: None)
    assert difference(folder, "tp2/learnt_defender.pt", tmp_path / "hf") <= 2e-5


def test_whose_weights_has_to_be_said_where_there_are_two(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="holds attacker and defender: say which with --role"):
        nemo_to_hf(folder / "run", tmp_path / "hf")
    with pytest.raises(ConvertError, match="is the attacker's, and not the defender's"):
        nemo_to_hf(folder / "run" / "snapshots" / "attacker" / "round_0002", tmp_path / "hf", role="defender")


def test_a_model_without_a_published_configuration_gets_one_made_from_its_keys(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    nemo_to_hf(folder / "by_nemo.nemo", tmp_path / "hf", say=said.append)
    assert "it is made from the model's own keys" in said[0]
    actors = torch.load(folder / "tp2" / "learnt_defender.pt")
    assert float((actors - logits_of(tmp_path / "hf")).abs().max()) <= 2e-5
