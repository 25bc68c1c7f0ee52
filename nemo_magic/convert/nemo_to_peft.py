"""An actor's adapters become Hugging Face's PEFT format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from nemo_magic.convert.atomic_output import atomic_output, gigabytes, refuse_target
from nemo_magic.convert.merged_checkpoint import MergedCheckpoint
from nemo_magic.convert.safetensors_folder import DTYPES, NAMES
from nemo_magic.hf_format.adapters import PEFT_CONFIG, PEFT_TENSORS, peft_config


def nemo_to_peft(
    source: MergedCheckpoint, target: Path, base: str, dtype: str | None, say: Callable[[str], None]
) -> None:
    """Write the adapters of ``source`` to the new folder ``target``, as ``peft`` loads them onto ``base``.

    Raises:
        ConvertError: nothing can be written there; ``target`` then does not exist.
    """
    card = source.card
    tensors = dict(source.peft_tensors())
    if dtype is not None:
        tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    refuse_target(target, size)
    with atomic_output(target) as partial:
        save_file(tensors, partial / PEFT_TENSORS, metadata={"format": "pt"})
        (partial / PEFT_CONFIG).write_text(
            json.dumps(peft_config(card.targets, card.adapter_dim, card.alpha, base), indent=2) + "\n", encoding="utf-8"
        )
    kinds = "/".join(NAMES[kind] for kind in dict.fromkeys(tensor.dtype for tensor in tensors.values()))
    say(f"{target}: adapters of dimension {card.adapter_dim}, {gigabytes(size)} of {kinds}, for {base}")
