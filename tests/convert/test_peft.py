"""PEFT adapters there and back, merged weights, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_magic import cli
from nemo_magic.actors.adapter_card import ADAPTER_CARD, AdapterCard
from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.convert.peft_to_nemo import peft_to_nemo
from nemo_magic.hf_format.errors import ConvertError
from tests.convert.tiny_hf import make, tensors
from tests.convert.tiny_peft import ALPHA, RANK, make_peft, merged


def quiet(_: str) -> None:
    return


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published checkpoints in hf/ and converted ones in nemo/."""
    folder = tmp_path_factory.mktemp("bases")
    for name in ("llama31", "qwen_tied"):
        hf_to_nemo(make(folder / "hf", name), folder / "nemo" / name, say=quiet)
    return folder


def converted(bases: Path, tmp_path: Path, name: str = "llama31", **options: object) -> tuple[Path, Path]:
    """PEFT's adapters, and what became of them."""
    source = make_peft(tmp_path / "peft", bases / "hf" / name, **options)  # type: ignore[arg-type]
    peft_to_nemo(source, tmp_path / "adapters", bases / "nemo" / name, say=quiet)
    return source, tmp_path / "adapters"


@pytest.mark.parametrize("name", ["llama31", "qwen_tied"])
def test_adapters_come_back_bit_for_bit_with_a_configuration_that_peft_reads(
    bases: Path, tmp_path: Path, name: str
) -> None:
    source, adapters = converted(bases, tmp_path, name)
    nemo_to_hf(adapters, tmp_path / "back", say=quiet, adapter=True, base_name="house/model")
    there, back = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "back"))
    assert there.keys() == back.keys()
    assert all(torch.equal(there[key], back[key]) for key in there)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "house/model"
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (RANK, ALPHA, "CAUSAL_LM")
    assert sorted(config["target_modules"]) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@pytest.mark.parametrize(
    ("shared", "left_out", "stacked"),
    [(True, (), 1), (False, (), 3), (False, ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 2)],
)
def test_merged_weights_are_those_of_peft_also_where_every_module_has_an_a_of_its_own(
    bases: Path, tmp_path: Path, shared: bool, left_out: tuple[str, ...], stacked: int
) -> None:
    source, adapters = converted(bases, tmp_path, shared=shared, left_out=left_out)
    card = AdapterCard.read(adapters)
    assert card is not None
    assert (card.adapter_dim, card.alpha) == (RANK * stacked, ALPHA * stacked)
    assert card.targets == (
        ("attention_qkv",) if left_out else ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2")
    )
    nemo_to_hf(adapters, tmp_path / "merged", say=quiet)
    expected, found = merged(bases / "hf" / "llama31", source), tensors(tmp_path / "merged")
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.allclose(tensor, found[key], rtol=0, atol=1e-6), key


def test_a_scale_by_the_root_of_the_rank_is_kept(bases: Path, tmp_path: Path) -> None:
    source, adapters = converted(bases, tmp_path, use_rslora=True)
    nemo_to_hf(adapters, tmp_path / "merged", say=quiet)
    expected = merged(bases / "hf" / "llama31", source, ALPHA / math.sqrt(RANK))
    key = "model.layers.3.mlp.up_proj.weight"
    assert torch.allclose(expected[key], tensors(tmp_path / "merged")[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora=True is not read here"),
        ({"bias": "all"}, "bias='all' is not read here"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not read here"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="),
        ({"r": None}, "r=None and lora_alpha=6 have to be numbers"),
        ({"r": 8}, "has shape (4, 64); for this base it would be (8, 64)"),
    ],
)
def test_other_kinds_of_adapters_are_refused(bases: Path, tmp_path: Path, config: dict[str, object], said: str) -> None:
    with pytest.raises(ConvertError, match="adapter_config.json|lora_A") as caught:
        converted(bases, tmp_path, **config)
    assert said in str(caught.value)
    assert not (tmp_path / "adapters").exists()


def test_adapters_are_exported_with_their_own_base_only_wherever_it_is_now(bases: Path, tmp_path: Path) -> None:
    _, adapters = converted(bases, tmp_path)
    moved = shutil.copytree(bases / "nemo" / "llama31", tmp_path / "moved")
    card = json.loads((adapters / ADAPTER_CARD).read_text())
    (adapters / ADAPTER_CARD).write_text(json.dumps(card | {"base": "/gone"}))
    with pytest.raises(ConvertError, match="/gone"):
        nemo_to_hf(adapters, tmp_path / "out", say=quiet)
    with pytest.raises(ConvertError, match="holds other weights"):
        nemo_to_hf(adapters, tmp_path / "out", say=quiet, base=bases / "nemo" / "qwen_tied")
    nemo_to_hf(adapters, tmp_path / "out", say=quiet, base=moved)
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_command_line_says_what_to_give(bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_peft(tmp_path / "peft", bases / "hf" / "llama31")
    assert cli.main(["convert", "hf-to-nemo", str(source), str(tmp_path / "adapters")]) != 0
    assert "--base" in capsys.readouterr().err
    base = str(bases / "nemo" / "llama31")
    assert cli.main(["convert", "hf-to-nemo", str(source), str(tmp_path / "adapters"), "--base", base]) == 0
    assert f"adapter_dim={RANK}, alpha={ALPHA}" in capsys.readouterr().out
    assert cli.main(["convert", "nemo-to-hf", str(tmp_path / "adapters"), str(tmp_path / "back"), "--adapter"]) == 0
    assert (tmp_path / "back" / "adapter_model.safetensors").is_file()
    assert cli.main(["convert", "nemo-to-hf", base, str(tmp_path / "other"), "--adapter"]) != 0
    assert "leave out --adapter" in capsys.readouterr().err
