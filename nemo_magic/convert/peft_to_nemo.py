"""Hugging Face's PEFT adapters become the adapters that a role begins with."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_magic.actors.adapter_card import AdapterCard, base_digest
from nemo_magic.convert import torch_dist
from nemo_magic.convert.atomic_output import atomic_output, gigabytes, refuse_target
from nemo_magic.convert.safetensors_folder import DTYPES, NAMES, SafetensorsFolder
from nemo_magic.convert.sources import open_source
from nemo_magic.hf_format.adapters import PEFT_CONFIG, PEFT_TENSORS, TARGETS, AdapterBlocks, Target, adapter_blocks
from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import read_json
from nemo_magic.hf_format.mapping import Block

_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "use_dora": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}
"""Key of adapter_config.json → the values under which an adapter is what is read here."""


@dataclass(frozen=True)
class _Peft:
    """PEFT adapters: their tensors, dimension, and the factor before B A."""

    tensors: SafetensorsFolder
    rank: int
    scale: float

    def factor(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """A tensor of this name, None where the module has no adapter."""
        return self.tensors.read(name).to(dtype) if name in self.tensors.shapes else None

    def present(self, target: Target, layer: int) -> list[int]:
        """The numbers of the modules of ``target`` that have adapters in ``layer``."""
        names = target.names(layer, "lora_A")
        return [i for i, name in enumerate(names) if name in self.tensors.shapes]

    def shares_a(self, target: Target, layer: int) -> bool:
        """Whether all modules of ``target`` have adapters in ``layer``, with one A."""
        names, present = target.names(layer, "lora_A"), self.present(target, layer)
        if len(present) < len(names):
            return False
        first = self.tensors.read(names[0])
        return all(torch.equal(first, self.tensors.read(name)) for name in names[1:])


def peft_to_nemo(
    source: Path, target: Path, base: Path, dtype: str | None = None, say: Callable[[str], None] = print
) -> None:
    """Convert the PEFT adapters in ``source`` to the new folder ``target``, which ``model.peft.restore_from_path``
    takes.

    Where queries, keys and values (or gate and up projection) have A of their own, these are stacked: the dimension
    grows, and what is computed does not change.

    Raises:
        ConvertError: they are no LoRA adapters of the model at ``base`` (a folder or ``.nemo`` file that
            ``restore_from_path`` takes); ``target`` then does not exist.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = open_source(base, None, None, Path(scratch)).model
    peft = _open(source)
    targets = [one for one in TARGETS if any(peft.present(one, layer) for layer in range(model.num_layers))]
    stacks = max(
        len(peft.present(one, layer)) if not peft.shares_a(one, layer) else 1
        for one in targets
        for layer in range(model.num_layers)
    )
    dim, kind = peft.rank * stacks, peft.tensors.dtype if dtype is None else DTYPES[dtype]
    names = tuple(one.name for one in targets)
    card = AdapterCard(str(base.absolute()), base_digest(base), names, dim, peft.scale * dim)
    layers = [adapter_blocks(model, names, dim, layer) for layer in range(model.num_layers)]
    _check(peft, layers)
    factors = {
        (block.key, block.offset): (one, layer)
        for layer, blocks in enumerate(layers)
        for one in blocks
        for block in (one.a, *one.b)
    }

    def tensor_of(block: Block) -> torch.Tensor:
        one, layer = factors[block.key, block.offset]
        return _a(peft, one, layer, dim, kind) if block is one.a else _b(peft, one, block, layer, dim, kind)

    files = [[block for one in blocks for block in (one.a, *one.b)] for blocks in layers]
    size = sum(torch.Size(block.shape).numel() for blocks in files for block in blocks) * kind.itemsize
    refuse_target(target, size)
    with atomic_output(target) as partial:
        torch_dist.write(partial, files, [], kind, tensor_of)
        card.write(partial)
    grown = f" (of {peft.rank}: A differs within a layer of Megatron's, and is stacked)" if stacks > 1 else ""
    say(
        f"{target}: adapters of {base}, {gigabytes(size)} of {NAMES[kind]}; set model.peft.peft_scheme=lora, "
        f"model.peft.lora_tuning.adapter_dim={dim}{grown}, alpha={card.alpha:g}, target_modules=[{','.join(names)}]"
    )


def _open(source: Path) -> _Peft:
    config = read_json(source / PEFT_CONFIG)
    for key, allowed in _REFUSED.items():
        if config.get(key) not in allowed:
            raise ConvertError(
                f"{source / PEFT_CONFIG}: {key}={config.get(key)!r} is not read here; plain LoRA adapters of linear "
                "layers are"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise ConvertError(f"{source / PEFT_CONFIG}: r={rank!r} and lora_alpha={alpha!r} have to be numbers")
    tensors = SafetensorsFolder(source, PEFT_TENSORS)
    known = {name for layer in range(_layers(tensors)) for one in TARGETS for name in one.names(layer, "lora_A")}
    known |= {name.replace(".lora_A.", ".lora_B.") for name in known}
    if unexpected := sorted(tensors.shapes.keys() - known):
        raise ConvertError(f"{source}: {unexpected[0]} has no place in a model ({len(unexpected)} such tensors)")
    return _Peft(tensors, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _layers(tensors: SafetensorsFolder) -> int:
    numbers = [name.split(".layers.")[1].split(".")[0] for name in tensors.shapes if ".layers." in name]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def _check(peft: _Peft, layers: list[list[AdapterBlocks]]) -> None:
    """Refuse adapters of another model's shapes, or of more layers."""
    if _layers(peft.tensors) > len(layers):
        raise ConvertError(f"{peft.tensors.folder} has adapters of {_layers(peft.tensors)} layers, not {len(layers)}")
    for layer, blocks in enumerate(layers):
        for one in blocks:
            width = one.a.shape[2]
            rows = [shape[0] for block in one.b for shape in block.shapes]
            for i in peft.present(one.target, layer):
                for factor, shape in (("lora_A", (peft.rank, width)), ("lora_B", (rows[i], peft.rank))):
                    name = one.target.names(layer, factor)[i]
                    if peft.tensors.shapes.get(name) != shape:
                        raise ConvertError(
                            f"{peft.tensors.folder}: {name} has shape {peft.tensors.shapes.get(name)}; for this base "
                            f"it would be {shape}"
                        )


def _a(peft: _Peft, one: AdapterBlocks, layer: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, dim, in]: the A of the modules, one after the other; zeros below."""
    names = one.target.names(layer, "lora_A")
    present = peft.present(one.target, layer)
    used = present[:1] if peft.shares_a(one.target, layer) else present
    whole = torch.zeros(one.a.shape[1:], dtype=dtype)
    for place, i in enumerate(used):
        tensor = peft.factor(names[i], dtype)
        assert tensor is not None
        whole[place * peft.rank : (place + 1) * peft.rank] = tensor
    return whole.view(one.a.shape)


def _b(peft: _Peft, one: AdapterBlocks, block: Block, layer: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, rows, dim]: the B of the block's modules, each in the columns where its A is; zeros elsewhere."""
    shared, present = peft.shares_a(one.target, layer), peft.present(one.target, layer)
    names = one.target.names(layer, "lora_B")
    parts = []
    for name, shape in zip(block.names, block.shapes, strict=True):
        whole, tensor = torch.zeros(shape, dtype=dtype), peft.factor(name, dtype)
        if tensor is not None:
            place = 0 if shared else present.index(names.index(name))
            whole[:, place * peft.rank : (place + 1) * peft.rank] = tensor
        parts.append(whole)
    return block.join(parts).view(block.shape)
