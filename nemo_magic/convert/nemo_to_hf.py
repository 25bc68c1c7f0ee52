"""An actor's weights become a Hugging Face checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_magic.convert import end_tokens, tokenizer_files
from nemo_magic.convert.atomic_output import atomic_output, gigabytes, refuse_target
from nemo_magic.convert.merged_checkpoint import MergedCheckpoint
from nemo_magic.convert.nemo_to_peft import nemo_to_peft
from nemo_magic.convert.safetensors_folder import DTYPES, NAMES, SafetensorsWriter
from nemo_magic.convert.sources import Source, open_source
from nemo_magic.convert.torch_dist import Checkpoint
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import config_of, difference, model_of, read_json
from nemo_magic.hf_format.mapping import Block, blocks_of

_EMBEDDING = "model.embedding.word_embeddings.weight"


def nemo_to_hf(
    source: Path,
    target: Path,
    role: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    hf: Path | None = None,
    say: Callable[[str], None] = print,
    trusted: bool = False,
    base: Path | None = None,
    adapter: bool = False,
    base_name: str | None = None,
) -> None:
    """Convert ``source`` (see ``open_source``) to the new folder ``target``.

    At most one layer's share of a Megatron tensor is in memory. Adapters are merged into their base.

    Args:
        role: whose weights, where there are several.
        dtype: bf16, fp16 or fp32; by default that of the weights.
        max_shard_size: of a safetensors file, such as ``5GB``.
        hf: the folder whose config.json the model came with.
        say: called with every line for people.
        trusted: pickles among the weights may run code.
        base: where the base of adapters is now; by default where it was when they were made.
        adapter: write the adapters alone, in PEFT's format.
        base_name: with ``adapter``, the name of the published base; by default what its config.json says, or the path.

    Raises:
        ConvertError: the source cannot be converted; ``target`` then does not exist.
    """
    refuse_target(target, source.stat().st_size if source.is_file() else 0)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as scratch:
        opened = open_source(source, role, hf, Path(scratch), trusted, base)
        if adapter:
            if not isinstance(opened.weights, MergedCheckpoint):
                raise ConvertError(f"{source} holds no adapters but all weights: leave out --adapter")
            nemo_to_peft(opened.weights, target, base_name or _name_of_base(opened), dtype, say)
        else:
            _convert(opened, target, dtype, max_shard_size, say)


def _name_of_base(source: Source) -> str:
    """By the config.json that the base came with; its path where it has no name there."""
    for folder in source.config_folders:
        if name := read_json(folder / "config.json").get("_name_or_path"):
            return str(name)
    assert isinstance(source.weights, MergedCheckpoint)
    return source.weights.card.base


def _convert(source: Source, target: Path, dtype: str | None, max_shard_size: str, say: Callable[[str], None]) -> None:
    weights = source.weights
    if _EMBEDDING not in weights.tensors:
        raise ConvertError(f"{weights.folder}: {_EMBEDDING} is missing: these are no weights of a GPT model")
    padded = int(weights.tensors[_EMBEDDING].size[0])
    tokenizer = tokenizer_files.load(source.tokenizer)
    config, config_folder = _config(source, padded, tokenizer)
    if config_folder is None:
        say(
            "no config.json of Hugging Face is known for it (--hf-config names one): it is made from the model's own "
            "keys"
        )
    files = blocks_of(source.model, config["vocab_size"], padded)
    _check(weights, files)
    target_dtype = _dtype(weights) if dtype is None else DTYPES[dtype]
    config = _with_dtype(config, target_dtype)
    shapes = {
        name: shape
        for blocks in files
        for block in blocks
        for name, shape in zip(block.names, block.shapes, strict=True)
    }
    size = sum(torch.Size(shape).numel() for shape in shapes.values()) * target_dtype.itemsize
    refuse_target(target, size)
    with atomic_output(target) as partial:
        with SafetensorsWriter(partial, shapes, target_dtype, max_shard_size) as writer:
            for blocks in files:
                for block in blocks:
                    tensors = block.split(weights.read(block))
                    for name, tensor in zip(block.names, tensors, strict=True):
                        writer.write(name, tensor)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if config_folder is not None and (config_folder / end_tokens.GENERATION).is_file():
            shutil.copyfile(config_folder / end_tokens.GENERATION, partial / end_tokens.GENERATION)
        elif config_folder is None:
            ids = {key: value for key, value in tokenizer_files.special_ids(tokenizer).items() if value is not None}
            (partial / end_tokens.GENERATION).write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        tokenizer_files.copy(source.tokenizer, partial, say)
        for line in end_tokens.differences(config, end_tokens.read_generation(partial), tokenizer):
            say(f"end tokens differ, and other programs may not stop where the model does: {line}")
    count = f"{len(writer.files)} file{'s' * (len(writer.files) > 1)}"
    say(f"{target}: {config['architectures'][0]}, {gigabytes(size)} of {NAMES[target_dtype]} in {count}")


def _config(source: Source, padded: int, tokenizer: Any) -> tuple[dict[str, Any], Path | None]:
    """The config.json that the model came with and its folder; one made from the model itself where none is known."""
    wrong = []
    for folder in source.config_folders:
        path = folder / "config.json"
        config = read_json(path)
        differences = difference(source.model, model_of(config))
        if config["vocab_size"] > padded:
            differences.append(f"{padded} rows of the embedding, not vocab_size={config['vocab_size']}")
        if not differences:
            return config, folder
        wrong.append(f"{path} is of another model than {source.weights.folder}: {'; '.join(differences)}")
    if wrong:
        raise ConvertError("\n".join([*wrong, "name the folder that its config.json is in with --hf-config"]))
    return config_of(source.model, padded, tokenizer_files.special_ids(tokenizer)), None


def _check(weights: Checkpoint | MergedCheckpoint, files: Sequence[Sequence[Block]]) -> None:
    """Refuse weights that are of another model than their configuration says."""
    expected = {block.key: block.tensor_shape for blocks in files for block in blocks}
    stored = weights.tensors
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(stored.keys() - expected.keys())
    if missing:
        raise ConvertError(f"{weights.folder}: tensors are missing: {', '.join(missing)}")
    if unexpected:
        raise ConvertError(f"{weights.folder}: tensors have no place at Hugging Face: {', '.join(unexpected)}")
    for key, shape in expected.items():
        if tuple(stored[key].size) != shape:
            raise ConvertError(
                f"{weights.folder}: {key} has shape {list(stored[key].size)}; by its configuration it would be "
                f"{list(shape)}"
            )


def _dtype(weights: Checkpoint | MergedCheckpoint) -> torch.dtype:
    dtypes = {tensor.properties.dtype for tensor in weights.tensors.values()}
    if len(dtypes) > 1:
        raise ConvertError(f"{weights.folder}: tensors have dtypes {sorted(map(str, dtypes))}: choose one with --dtype")
    return dtypes.pop()


def _with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    key = "dtype" if "dtype" in config else "torch_dtype"
    return config | {key: str(dtype).removeprefix("torch.")}
