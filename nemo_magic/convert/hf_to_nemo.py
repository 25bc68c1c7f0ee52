"""A Hugging Face checkpoint becomes starting weights of an actor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from nemo_magic.actors.nemo_archive import CONFIG, WEIGHTS
from nemo_magic.convert import end_tokens, nemo_file, tokenizer_files, torch_dist
from nemo_magic.convert.atomic_output import atomic_output, gigabytes, refuse_target
from nemo_magic.convert.safetensors_folder import DTYPES, NAMES, SafetensorsFolder
from nemo_magic.hf_format.adapters import PEFT_CONFIG
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import MODEL, model_of, model_yaml, opens_in_nemo, padded_rows, read_json
from nemo_magic.hf_format.mapping import Block, blocks_of, extra_state_names

HF, TOKENIZER = "hf", "tokenizer"
_COPIED = ("config.json", end_tokens.GENERATION)
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "16", torch.float32: "32"}


def hf_to_nemo(source: Path, target: Path, dtype: str | None = None, say: Callable[[str], None] = print) -> None:
    """Convert the folder ``source`` to the folder ``target``, or to a file when its name ends in ``.nemo``.

    The folder is what ``actors.<role>.restore_from_path`` takes: a Megatron-core checkpoint, with ``tokenizer/``,
    ``hf/`` (files that nemo-to-hf needs) and ``model.yaml`` (content for a file of conf/model). At most one layer's
    share of the largest Megatron tensor is in memory.

    Args:
        dtype: bf16, fp16 or fp32; by default that of the source.
        say: called with every line for people.

    Raises:
        ConvertError: the source cannot be converted; ``target`` then does not exist.
    """
    if not source.is_dir():
        raise ConvertError(
            f"{source}: no such folder; what is on the hub comes here with `huggingface-cli download NAME --local-dir "
            f"{source}`"
        )
    if (source / PEFT_CONFIG).is_file():
        raise ConvertError(f"{source} holds adapters of PEFT: name the converted weights under them with --base")
    config = read_json(source / "config.json")
    tokenizer = tokenizer_files.load(source)
    differing = end_tokens.refuse_wrong(config, source, tokenizer)
    packed = target.suffix == ".nemo"
    own_tokenizer = source if packed else target / TOKENIZER
    model = model_of(config, len(tokenizer), str(own_tokenizer.absolute()))
    if packed and not opens_in_nemo(model):
        raise ConvertError(
            f"{target}: NeMo would open a .nemo file of this model without its norms of queries and keys, or with "
            "another rotary factor: give a folder as target"
        )
    tensors = SafetensorsFolder(source)
    files = blocks_of(model, config["vocab_size"], padded_rows(model, len(tokenizer)))
    _check(tensors, files, tied=model.share_embeddings_and_output_weights)
    target_dtype = tensors.dtype if dtype is None else DTYPES[dtype]
    size = sum(torch.Size(block.shape).numel() for blocks in files for block in blocks) * target_dtype.itemsize
    # A tar grows as the files go into it, one at a time.
    largest = max(sum(torch.Size(b.shape).numel() for b in blocks) for blocks in files) * target_dtype.itemsize
    refuse_target(target, size + (largest if packed else 0))
    say(
        f"{config['model_type']}, {model.num_layers} layers × {model.hidden_size}: {gigabytes(tensors.size)} of "
        f"{'/'.join(NAMES[d] for d in tensors.dtypes)} → {gigabytes(size)} of {NAMES[target_dtype]}"
    )

    def tensor_of(block: Block) -> torch.Tensor:
        return block.join([tensors.read(name).to(target_dtype) for name in block.names])

    with atomic_output(target) as partial:
        content = partial / "content" if packed else partial
        weights = content / WEIGHTS if packed else content
        weights.mkdir(parents=True, exist_ok=True)
        tokenizer_files.copy(source, content / TOKENIZER, say)
        (content / HF).mkdir()
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, content / HF / name)
        keys = nemo_file.nemo_config(model, _PRECISIONS[target_dtype]) if packed else model_yaml(model)
        path = content / (CONFIG if packed else MODEL)
        path.write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")
        progress = _progress(len(files), say)
        torch_dist.write(weights, files, extra_state_names(model), target_dtype, tensor_of, progress)
        if packed:
            nemo_file.pack(content, partial / target.name)
    if not getattr(tokenizer, "chat_template", None):
        say("the tokenizer has no chat template, which an actor needs: it is a base model's")
    for line in differing:
        say(f"end tokens differ: {line}")
    say(f"{target}: {'restore_from_path takes it' if packed else f'restore_from_path takes it; its model is {MODEL}'}")


def _check(tensors: SafetensorsFolder, files: Sequence[Sequence[Block]], tied: bool) -> None:
    """Refuse a checkpoint that lacks tensors, has others, or has them in other shapes."""
    expected = {
        name: shape
        for blocks in files
        for block in blocks
        for name, shape in zip(block.names, block.shapes, strict=True)
    }
    missing = [name for name in expected if name not in tensors.shapes]
    if missing:
        raise ConvertError(f"{tensors.folder}: {len(missing)} tensors are missing: {_first_names(missing)}")
    for name, shape in expected.items():
        if tensors.shapes[name] != shape:
            raise ConvertError(
                f"{tensors.folder}: {name} has shape {list(tensors.shapes[name])}; by config.json it would be "
                f"{list(shape)}"
            )
    unexpected = sorted(tensors.shapes.keys() - expected.keys())
    # Some checkpoints hold a tied matrix twice.
    if tied and unexpected == ["lm_head.weight"]:
        if torch.equal(tensors.read("lm_head.weight"), tensors.read("model.embed_tokens.weight")):
            return
        raise ConvertError(
            f"{tensors.folder}: tie_word_embeddings=true, but lm_head.weight is not equal to model.embed_tokens.weight"
        )
    if unexpected:
        raise ConvertError(
            f"{tensors.folder}: {len(unexpected)} tensors have no place in the model: {_first_names(unexpected)}"
        )


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _progress(files: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """Reports every tenth of ``files``, of which there have to be at least 20."""

    def file_written(done: int) -> None:
        if files >= 20 and done * 10 // files > (done - 1) * 10 // files:
            say(f"{done} of {files} files written")

    return file_written
