"""A tokenizer's files: copied unchanged, chat template included."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_magic.hf_format.errors import ConvertError

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


MODEL_FILE = "tokenizer.model"
"""What sentencepiece and tiktoken call a tokenizer; transformers prefers tokenizer.json, and may never read it."""


def load(name: str | Path) -> Any:
    """The tokenizer as NeMo loads it. Raises ConvertError where none can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), use_fast=True, trust_remote_code=False)
    except Exception as error:  # of a folder without files, or with broken ones, transformers raises all kinds
        raise ConvertError(f"{name}: no tokenizer can be loaded: {' '.join(str(error).split())}") from error


def copy(source: str | Path, target: Path, say: Callable[[str], None]) -> None:
    """Put the files of the tokenizer ``source``, a folder or a name on the hub, into the folder ``target``.

    ``say``: told of a ``tokenizer.model`` that is none, such as a model's weights under that name; it stays behind.
    """
    target.mkdir(exist_ok=True)
    files = [Path(source) / name for name in _FILES if (Path(source) / name).is_file()]
    if files:
        for path in files:
            if path.name == MODEL_FILE and not _is_model_file(path):
                size = path.stat().st_size / 1e6
                say(
                    f"{path} ({size:,.1f} MB) is no tokenizer, neither sentencepiece's nor tiktoken's: it is not copied"
                )
                continue
            shutil.copyfile(path, target / path.name)
    else:
        load(source).save_pretrained(target)


def special_ids(tokenizer: Any) -> dict[str, int | None]:
    """The ids of its begin, end and padding tokens, under their names in ``config.json``."""
    return {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _is_model_file(path: Path) -> bool:
    content = path.read_bytes()
    return _is_sentencepiece(content) or _is_tiktoken(content)


def _is_sentencepiece(content: bytes) -> bool:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor().LoadFromSerializedProto(content)
    except RuntimeError:
        return False
    return True


def _is_tiktoken(content: bytes) -> bool:
    """Whether every line is a token in base64 and its rank."""
    try:
        for line in content.splitlines():
            token, rank = line.split()
            base64.b64decode(token, validate=True)
            int(rank)
    except ValueError:
        return False
    return bool(content.strip())
