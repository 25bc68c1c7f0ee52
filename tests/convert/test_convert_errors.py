"""Checkpoints that are not whole, or not what they say: refused by file, tensor or key, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nemo_magic.convert import sources, torch_dist
from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.convert.safetensors_folder import INDEX, SafetensorsFolder
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.mapping import Block
from tests.convert.tiny_hf import edit_config, make, tensors

ONE = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sharded checkpoint, one in one file, and a converted one."""
    folder = tmp_path_factory.mktemp("made")
    sharded, single = make(folder / "sharded"), make(folder / "single", "qwen_tied", shard="1GB")
    hf_to_nemo(sharded, folder / "nemo", say=lambda _: None)
    return {"sharded": sharded, "single": single, "nemo": folder / "nemo"}


def refused(convert: Callable[..., None], source: Path, tmp_path: Path, said: str, name: str = "target") -> None:
    """``convert`` says ``said`` (with the source in place of FOLDER), and nothing is where it would have written."""
    target = tmp_path / "results" / name
    with pytest.raises(ConvertError) as error:
        convert(source, target, say=lambda _: None)
    assert said.replace("FOLDER", str(source)) in str(error.value)
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file: str = ONE) -> None:
    held = load_file(folder / file)
    change(held)
    save_file(held, folder / file, metadata={"format": "pt"})


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


@pytest.fixture
def sharded(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["sharded"], tmp_path / "sharded"))


@pytest.fixture
def single(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["single"], tmp_path / "single"))


@pytest.fixture
def nemo(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["nemo"], tmp_path / "nemo"))


# --- hf-to-nemo


def test_a_source_that_is_no_folder_is_told_how_to_come_here(tmp_path: Path) -> None:
    refused(hf_to_nemo, tmp_path / "meta-llama", tmp_path, "FOLDER: no such folder; what is on the hub comes here with")


def test_a_configuration_has_to_be_there_and_be_json(sharded: Path, tmp_path: Path) -> None:
    (sharded / "config.json").write_text("{")
    refused(hf_to_nemo, sharded, tmp_path, "FOLDER/config.json is not JSON")
    (sharded / "config.json").write_text("[]")
    refused(hf_to_nemo, sharded, tmp_path, "FOLDER/config.json holds a list, not an object")
    (sharded / "config.json").unlink()
    refused(hf_to_nemo, sharded, tmp_path, "FOLDER/config.json: no such file")


def test_a_tokenizer_has_to_be_there(sharded: Path, tmp_path: Path) -> None:
    for path in [*sharded.glob("tokenizer*"), sharded / "special_tokens_map.json"]:
        path.unlink()
    refused(hf_to_nemo, sharded, tmp_path, "FOLDER: no tokenizer can be loaded")


def test_a_shard_that_is_missing_is_named(sharded: Path, tmp_path: Path) -> None:
    gone = sorted(set(index_of(sharded).values()))[1:3]
    for name in gone:
        (sharded / name).unlink()
    refused(hf_to_nemo, sharded, tmp_path, f"files in {INDEX} are missing: {gone[0]}, {gone[1]}")


def test_a_shard_that_was_cut_short_is_named(sharded: Path, tmp_path: Path) -> None:
    path = next(iter(sharded.glob("*.safetensors")))
    path.write_bytes(path.read_bytes()[:-10])
    refused(hf_to_nemo, sharded, tmp_path, f"{path} is damaged")


def test_tensors_have_to_be_where_the_index_says(sharded: Path, tmp_path: Path) -> None:
    index = index_of(sharded)
    name, file = next(iter(index.items()))
    resave(sharded, lambda held: held.pop(name), file)
    refused(hf_to_nemo, sharded, tmp_path, f"FOLDER/{INDEX}: {name} is not in {file} (1 such tensors)")


def test_a_tensor_that_no_index_lists_is_named(sharded: Path, tmp_path: Path) -> None:
    file = next(iter(index_of(sharded).values()))
    resave(sharded, lambda held: held.update(stray=torch.zeros(3)), file)
    refused(hf_to_nemo, sharded, tmp_path, f"stray is in no line of {INDEX} (1 such tensors)")


def test_a_tensor_in_two_files_is_named(sharded: Path, tmp_path: Path) -> None:
    first, second = sorted(set(index_of(sharded).values()))[:2]
    twice = next(iter(load_file(sharded / first)))
    resave(sharded, lambda held: held.update({twice: torch.zeros(3)}), second)
    refused(hf_to_nemo, sharded, tmp_path, f"{twice} is in {first} and in {second}")


def test_an_index_has_to_have_a_map(sharded: Path, tmp_path: Path) -> None:
    (sharded / INDEX).write_text("{}")
    refused(hf_to_nemo, sharded, tmp_path, f"FOLDER/{INDEX} has no weight_map")


def test_pickled_weights_are_not_read(single: Path, tmp_path: Path) -> None:
    (single / ONE).rename(single / "pytorch_model.bin")
    said = f"FOLDER has neither {INDEX} nor {ONE}; there are pytorch_model.bin: only safetensors are read"
    refused(hf_to_nemo, single, tmp_path, said)


def test_a_tensor_that_is_missing_is_named(single: Path, tmp_path: Path) -> None:
    resave(single, lambda held: held.pop("model.layers.1.self_attn.k_proj.bias"))
    refused(hf_to_nemo, single, tmp_path, "1 tensors are missing: model.layers.1.self_attn.k_proj.bias")


def test_tensors_that_have_no_place_are_named(single: Path, tmp_path: Path) -> None:
    resave(single, lambda held: held.update({"model.layers.0.self_attn.q_norm.weight": torch.zeros(8)}))
    said = "1 tensors have no place in the model: model.layers.0.self_attn.q_norm.weight"
    refused(hf_to_nemo, single, tmp_path, said)


def test_computed_frequencies_of_old_checkpoints_are_no_weights(single: Path, tmp_path: Path) -> None:
    resave(single, lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    hf_to_nemo(single, tmp_path / "nemo", say=lambda _: None)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in SafetensorsFolder(single).shapes


def test_a_shape_that_the_configuration_does_not_give_is_named(single: Path, tmp_path: Path) -> None:
    edit_config(single, intermediate_size=120)
    said = "model.layers.0.mlp.gate_proj.weight has shape [112, 64]; by config.json it would be [120, 64]"
    refused(hf_to_nemo, single, tmp_path, said)


def test_dtypes_have_to_be_known_and_one(single: Path, tmp_path: Path) -> None:
    key = "model.norm.weight"
    resave(single, lambda held: held.update({key: held[key].bfloat16()}))
    refused(
        hf_to_nemo,
        single,
        tmp_path,
        "FOLDER: dtypes differ (model.embed_tokens.weight fp32 and model.norm.weight bf16)",
    )
    hf_to_nemo(single, tmp_path / "nemo", dtype="fp32", say=lambda _: None)
    resave(single, lambda held: held.update({key: held[key].to(torch.int8)}))
    refused(hf_to_nemo, single, tmp_path, f"FOLDER/{ONE}: {key} has dtype I8; known are BF16, F16, F32")
    resave(single, lambda held: held.clear())
    refused(hf_to_nemo, single, tmp_path, "FOLDER holds no tensors")


def test_an_output_layer_that_is_not_the_tied_embedding_is_refused(single: Path, tmp_path: Path) -> None:
    resave(single, lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"] + 1}))
    said = "tie_word_embeddings=true, but lm_head.weight is not equal to model.embed_tokens.weight"
    refused(hf_to_nemo, single, tmp_path, said)


@pytest.mark.parametrize("name", ["target", "target.nemo"])
def test_a_disk_without_room_is_refused_before_anything_is_written(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    refused(hf_to_nemo, single, tmp_path, "not enough room on its disk: ", name)


@pytest.mark.parametrize("name", ["target", "target.nemo"])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch_dist, "write_durably", full)
    refused(hf_to_nemo, single, tmp_path, "No space left on device; nothing was left there", name)


def test_a_source_that_fails_on_the_way_leaves_nothing(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SafetensorsFolder.read

    def failing(self: SafetensorsFolder, name: str) -> torch.Tensor:
        if name == "model.layers.3.mlp.down_proj.weight":
            (single / ONE).write_bytes(b"")
        return read(self, name)

    monkeypatch.setattr(SafetensorsFolder, "read", failing)
    refused(hf_to_nemo, single, tmp_path, f"FOLDER/{ONE}: model.layers.3.mlp.down_proj.weight: ")


def test_a_target_that_exists_stays_as_it_is(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for convert, source in ((hf_to_nemo, made["single"]), (nemo_to_hf, made["nemo"])):
        with pytest.raises(ConvertError, match="there exists: choose another target, or remove it"):
            convert(source, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"


def test_a_base_models_lack_of_a_chat_template_is_said(single: Path, tmp_path: Path) -> None:
    (single / "chat_template.jinja").unlink()
    said: list[str] = []
    hf_to_nemo(single, tmp_path / "nemo", say=said.append)
    assert any("the tokenizer has no chat template, which an actor needs" in line for line in said)


# --- nemo-to-hf


def test_a_source_has_to_exist_and_to_say_what_model_it_is_of(nemo: Path, tmp_path: Path) -> None:
    refused(nemo_to_hf, tmp_path / "nothing", tmp_path, "FOLDER: no such file or folder")
    (nemo / "model.yaml").unlink()
    refused(nemo_to_hf, nemo, tmp_path, "FOLDER: neither it nor a folder above it has config.yaml")


def a_run(nemo: Path, run: Path, **model: object) -> Path:
    keys = yaml.safe_load((nemo / "model.yaml").read_text()) | model
    cfg = {"model": keys, "actors": {"attacker": {}, "defender": {}}, "sft": {"role": "attacker"}}
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))
    return run


def test_a_run_without_weights_and_a_checkpoint_without_a_seal_are_refused(nemo: Path, tmp_path: Path) -> None:
    run = a_run(nemo, tmp_path / "run")
    refused(nemo_to_hf, run, tmp_path, "FOLDER holds no weights: there is neither metadata.json, nor policies/")
    (run / "checkpoints" / "step_000004" / "policies").mkdir(parents=True)
    refused(nemo_to_hf, run / "checkpoints" / "step_000004", tmp_path, "FOLDER has no COMMITTED: it was not finished")


def test_a_shard_size_that_is_none_is_refused(nemo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="--max-shard-size lots: Unit 'TS' not supported"):
        nemo_to_hf(nemo, tmp_path / "target", max_shard_size="lots")
    assert not (tmp_path / "target").exists()


def test_a_tokenizer_that_is_not_of_hugging_face_is_refused(nemo: Path, tmp_path: Path) -> None:
    run = a_run(nemo, tmp_path / "run", tokenizer={"library": "sentencepiece", "type": None})
    nemo.rename(run / "weights")
    refused(nemo_to_hf, run, tmp_path, "only tokenizers of Hugging Face can be written for it")


def test_keys_of_a_model_that_have_the_wrong_type_are_named(nemo: Path, tmp_path: Path) -> None:
    run = a_run(nemo, tmp_path / "run", num_layers="many")
    nemo.rename(run / "weights")
    (run / "weights" / "model.yaml").unlink()
    refused(nemo_to_hf, run, tmp_path, f"{run / 'config.yaml'}: ")


def test_files_of_a_checkpoint_that_are_missing_or_cut_short_are_named(nemo: Path, tmp_path: Path) -> None:
    (nemo / "__1_0.distcp").unlink()
    (nemo / "__2_0.distcp").write_bytes((nemo / "__2_0.distcp").read_bytes()[:-100])
    refused(nemo_to_hf, nemo, tmp_path, "FOLDER: missing or cut short: __1_0.distcp, __2_0.distcp")


def test_a_damaged_tensor_is_named(nemo: Path, tmp_path: Path) -> None:
    size = (nemo / "__1_0.distcp").stat().st_size
    (nemo / "__1_0.distcp").write_bytes(b"\0" * size)
    said = "FOLDER: model.decoder.layers.self_attention.linear_qkv.weight at (0, 0, 0) is damaged: "
    refused(nemo_to_hf, nemo, tmp_path, said)
    (nemo / ".metadata").write_bytes(b"")
    refused(nemo_to_hf, nemo, tmp_path, "FOLDER/.metadata is damaged: ")


def test_a_checkpoint_without_its_index_or_in_zarr_is_refused(nemo: Path, tmp_path: Path) -> None:
    (nemo / ".metadata").unlink()
    refused(nemo_to_hf, nemo, tmp_path, "FOLDER/.metadata: no such file")
    (nemo / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    refused(nemo_to_hf, nemo, tmp_path, "sharded_backend='zarr', only torch_dist can be read")


def test_weights_of_another_model_than_the_configuration_says_are_refused(nemo: Path, tmp_path: Path) -> None:
    path = nemo / "model.yaml"
    keys = yaml.safe_load(path.read_text())
    shutil.rmtree(nemo / "hf")
    path.write_text(yaml.safe_dump(keys | {"ffn_hidden_size": 120}))
    said = "linear_fc1.weight has shape [4, 224, 64]; by its configuration it would be [4, 240, 64]"
    refused(nemo_to_hf, nemo, tmp_path, said)
    path.write_text(yaml.safe_dump(keys | {"qkv_bias": False}))
    refused(
        nemo_to_hf, nemo, tmp_path, "tensors have no place at Hugging Face: model.decoder.layers.self_attention.linear"
    )
    path.write_text(yaml.safe_dump(keys | {"num_layers": 0}))
    refused(nemo_to_hf, nemo, tmp_path, "tensors have no place at Hugging Face")


def test_a_published_configuration_of_another_model_is_refused(
    nemo: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    edit_config(nemo / "hf", rope_theta=10000.0)
    refused(nemo_to_hf, nemo, tmp_path, "is of another model than FOLDER: rotary_base=1000000, not 10000")
    with pytest.raises(ConvertError, match="share_embeddings_and_output_weights=False, not True"):
        nemo_to_hf(nemo, tmp_path / "target", hf=made["single"])
    nemo_to_hf(nemo, tmp_path / "target", hf=made["sharded"], say=lambda _: None)
    assert tensors(tmp_path / "target").keys() == tensors(made["sharded"]).keys()


def test_an_embedding_with_fewer_rows_than_published_is_refused(nemo: Path, tmp_path: Path) -> None:
    edit_config(nemo / "hf", vocab_size=385)
    refused(nemo_to_hf, nemo, tmp_path, "384 rows of the embedding, not vocab_size=385")


def test_a_tensor_that_shards_do_not_cover_is_named(tmp_path: Path) -> None:
    half = Block("model.w.weight", (2, 4), (0, 0), (1, 4), ("w",), ((1, 4),))
    rest = Block("model.w.weight", (2, 4), (1, 0), (1, 4), ("w",), ((1, 4),))
    torch_dist.write(tmp_path, [[half]], [], torch.float32, lambda _: torch.ones(1, 4))
    checkpoint = torch_dist.Checkpoint(tmp_path)
    assert torch.equal(checkpoint.read(half), torch.ones(1, 4))
    with pytest.raises(ConvertError, match=r"model.w.weight has no elements at \(1, 0\)"):
        checkpoint.read(rest)


def test_weights_without_an_embedding_or_in_two_dtypes_are_refused(nemo: Path, tmp_path: Path) -> None:
    other = Block("model.w.weight", (4,), (0,), (4,), ("w",), ((4,),))
    for name in (".metadata", "metadata.json"):
        (nemo / name).unlink()
    torch_dist.write(nemo, [[other]], [], torch.float32, lambda _: torch.ones(4))
    refused(nemo_to_hf, nemo, tmp_path, "model.embedding.word_embeddings.weight is missing: these are no weights")


def test_a_file_that_is_no_nemo_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.nemo"
    path.write_text("not a tar")
    refused(nemo_to_hf, path, tmp_path, "FOLDER is no .nemo file, or damaged")
    (tmp_path / "model_config.yaml").write_text("{}")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "weights.nemo", "./model_weights.ckpt")
    refused(nemo_to_hf, path, tmp_path, "FOLDER has no model_config.yaml")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "model_config.yaml", "./model_config.yaml")
        tar.add(tmp_path / "model_config.yaml", "./model_weights.ckpt")
    refused(nemo_to_hf, path, tmp_path, "FOLDER has no folder model_weights but model_config.yaml, model_weights.ckpt")


def test_whose_weights_are_meant_is_asked_and_not_guessed() -> None:
    policies = ["attacker", "defender"]
    assert sources._policy_name(Path("x"), policies, "attacker") == "attacker"
    assert sources._policy_name(Path("x"), ["shared"], "attacker") == "shared"
    assert sources._policy_name(Path("x"), ["defender"], None) == "defender"
    with pytest.raises(ConvertError, match="x holds defender, and no attacker"):
        sources._policy_name(Path("x"), ["defender"], "attacker")
