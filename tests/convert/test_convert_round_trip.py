"""There and back: every tensor bit for bit, and everything beside the tensors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from nemo_magic import cli
from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.convert.safetensors_folder import INDEX
from nemo_magic.hf_format.errors import ConvertError
from tests.convert.tiny_hf import CHECKPOINTS, MEGATRON_ONLY, TEMPLATE, TOKENS, make, tensors


def there_and_back(source: Path, tmp_path: Path, middle: str = "nemo", **options: str) -> Path:
    hf_to_nemo(source, tmp_path / middle, say=lambda _: None)
    nemo_to_hf(tmp_path / middle, tmp_path / "back", say=lambda _: None, **options)
    return tmp_path / "back"


ALL = (*CHECKPOINTS, *MEGATRON_ONLY)
OURS = ("llama32", "qwen3", *MEGATRON_ONLY)
"""Checkpoints that NeMo by itself would build otherwise."""
MIDDLES = [(name, middle) for middle in ("nemo", "packed.nemo") for name in ALL if middle == "nemo" or name not in OURS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "middle"), MIDDLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype, middle: str) -> None:
    source = make(tmp_path / "hf", name, dtype)
    there, back = tensors(source), tensors(there_and_back(source, tmp_path, middle))
    assert there.keys() == back.keys()
    assert {tensor.dtype for tensor in back.values()} == {dtype}
    assert all(torch.equal(there[key], back[key]) for key in there)


@pytest.mark.parametrize("name", OURS)
def test_a_nemo_file_that_nemo_would_open_as_another_model_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConvertError, match=r"packed\.nemo: NeMo would open .* give a folder as target"):
        hf_to_nemo(make(tmp_path / "hf", name), tmp_path / "packed.nemo", say=lambda _: None)
    assert not (tmp_path / "packed.nemo").exists()


@pytest.mark.parametrize("name", ALL)
def test_configuration_and_tokenizer_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "hf", name)
    back = there_and_back(source, tmp_path)
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((back / file).read_text()) == json.loads((source / file).read_text()), file
    for folder in (tmp_path / "nemo" / "tokenizer", back):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert (len(tokenizer), tokenizer.chat_template) == (TOKENS, TEMPLATE)
        assert tokenizer.apply_chat_template([{"role": "w7", "content": "w8"}], add_generation_prompt=True) == [
            11,
            12,
            5,
        ]


def test_shards_are_as_large_as_they_may_be_and_an_index_says_where_tensors_are(tmp_path: Path) -> None:
    source = make(tmp_path / "hf")
    back = there_and_back(source, tmp_path, max_shard_size="150KB")
    files = sorted(path.name for path in back.glob("*.safetensors"))
    index = json.loads((back / INDEX).read_text())
    assert len(files) > 3
    assert files == sorted(set(index["weight_map"].values()))
    assert all((back / name).stat().st_size < 160_000 for name in files)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors(source).values())
    assert json.loads((back / "config.json").read_text())["dtype"] == "float32"


def test_another_dtype_can_be_asked_for_in_either_direction(tmp_path: Path) -> None:
    source = make(tmp_path / "hf")
    hf_to_nemo(source, tmp_path / "nemo", dtype="bf16", say=lambda _: None)
    nemo_to_hf(tmp_path / "nemo", tmp_path / "as_it_is", say=lambda _: None)
    nemo_to_hf(tmp_path / "nemo", tmp_path / "fp32", dtype="fp32", say=lambda _: None)
    expected = {key: tensor.bfloat16() for key, tensor in tensors(source).items()}
    assert all(torch.equal(expected[key], tensor) for key, tensor in tensors(tmp_path / "as_it_is").items())
    assert all(torch.equal(expected[key].float(), tensor) for key, tensor in tensors(tmp_path / "fp32").items())
    dtypes = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("as_it_is", "fp32")]
    assert dtypes == ["bfloat16", "float32"]


def test_a_tied_matrix_that_is_stored_twice_is_read_once(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = make(tmp_path / "hf", "qwen_tied", shard="1GB")
    once = tensors(source)
    save_file(once | {"lm_head.weight": once["model.embed_tokens.weight"].clone()}, source / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert tensors(there_and_back(source, tmp_path)).keys() == once.keys()


# Killed when everything is written but what makes a checkpoint of it: metadata.json; the tokenizer and the name.
KILLED = """
import os, sys
from pathlib import Path
from nemo_magic.convert import hf_to_nemo, nemo_to_hf, tokenizer_files, torch_dist
def die(*_): os.kill(os.getpid(), 9)
source, target = map(Path, sys.argv[2:])
if sys.argv[1] == "there":
    torch_dist.write_durably = die
    hf_to_nemo.hf_to_nemo(source, target)
else:
    tokenizer_files.copy = die
    nemo_to_hf.nemo_to_hf(source, target)
"""


@pytest.mark.process
def test_what_a_killed_conversion_left_is_no_target_and_in_nobodys_way(tmp_path: Path) -> None:
    source = make(tmp_path / "hf")
    hf_to_nemo(source, tmp_path / "nemo", say=lambda _: None)
    for way, start, target in (("there", source, tmp_path / "a"), ("back", tmp_path / "nemo", tmp_path / "b")):
        killed = subprocess.run([sys.executable, "-c", KILLED, way, start, target], capture_output=True, check=False)
        assert killed.returncode == -9
        assert not target.exists()
        assert list((tmp_path / f".{target.name}.partial").iterdir())
    hf_to_nemo(source, tmp_path / "a", say=lambda _: None)
    nemo_to_hf(tmp_path / "nemo", tmp_path / "b", say=lambda _: None)
    assert list(tmp_path.glob(".*.partial")) == []


def test_the_command_line_converts_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "hf", "llama31")
    assert cli.main(["convert", "hf-to-nemo", str(source), str(tmp_path / "nemo")]) == 0
    assert cli.main(["convert", "nemo-to-hf", str(tmp_path / "nemo"), str(tmp_path / "back"), "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "llama, 4 layers × 64: 0.7 MB of fp32 → 0.7 MB of fp32" in said
    assert f"{tmp_path / 'back'}: LlamaForCausalLM, 0.3 MB of bf16 in 1 file" in said
    assert cli.main(["convert", "nemo-to-hf", str(tmp_path / "nemo"), str(tmp_path / "back")]) == 1
    assert "nemo-magic convert: " in capsys.readouterr().err
    model = yaml.safe_load((tmp_path / "nemo" / "model.yaml").read_text())
    assert model["tokenizer"] == {"library": "huggingface", "type": str(tmp_path / "nemo" / "tokenizer")}


@pytest.mark.process
def test_converting_needs_neither_megatron_nor_nemo(tmp_path: Path) -> None:
    source = make(tmp_path / "hf")
    program = (
        "import sys\n"
        "for name in ('megatron', 'nemo', 'nemo_aligner', 'lightning'): sys.modules[name] = None\n"
        "from nemo_magic.cli import main\n"
        f"assert main(['convert', 'hf-to-nemo', {str(source)!r}, {str(tmp_path / 'nemo')!r}]) == 0\n"
        f"assert main(['convert', 'nemo-to-hf', {str(tmp_path / 'nemo')!r}, {str(tmp_path / 'back')!r}]) == 0\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert run.returncode == 0, run.stderr


# VmHWM: the peak that getrusage tells of begins with that of the process which started this one.
MEASURE = """
import sys
from pathlib import Path
import psutil
from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.convert.tokenizer_files import load
way, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
load(source if way == "there" else source / "tokenizer")
before = psutil.Process().memory_info().rss
Path("/proc/self/clear_refs").write_text("5")
(hf_to_nemo if way == "there" else nemo_to_hf)(source, target, say=lambda _: None)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.process
def test_host_memory_stays_far_below_the_checkpoints_size(tmp_path: Path) -> None:
    wide = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 16}
    source = make(tmp_path / "hf", "llama31", torch.bfloat16, shard="150MB", **wide)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert size > 350e6

    def peak(way: str, start: Path, target: Path) -> int:
        command = [sys.executable, "-c", MEASURE, way, str(start), str(target)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    there = peak("there", source, tmp_path / "nemo")
    back = peak("back", tmp_path / "nemo", tmp_path / "back")
    print(f"checkpoint {size / 1e6:.0f} MB; above the start: there {there / 1e6:.0f} MB, back {back / 1e6:.0f} MB")
    shutil.rmtree(tmp_path)  # a gigabyte, which pytest would keep
    assert there < 0.4 * size
    assert back < 0.4 * size
