"""A tokenizer's files: copied unchanged, chat template included."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nemo_magic.convert.errors import ConvertError

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def load(name: str | Path) -> Any:
    """The tokenizer as NeMo loads it. Raises ConvertError where none can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConvertError(f"{name}: no tokenizer can be loaded: {str(error).splitlines()[0]}") from error


def copy(source: str | Path, target: Path) -> None:
    """Put the files of the tokenizer ``source``, a folder or a name on the hub, into the folder ``target``."""
    target.mkdir(exist_ok=True)
    files = [Path(source) / name for name in _FILES if (Path(source) / name).is_file()]
    if files:
        for path in files:
            shutil.copyfile(path, target / path.name)
    else:
        load(source).save_pretrained(target)


def special_ids(tokenizer: Any) -> dict[str, int | None]:
    """The ids of its begin, end and padding tokens, under their names in ``config.json``."""
    return {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
