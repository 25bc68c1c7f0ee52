"""Folders of safetensors as Hugging Face lays them out, read a tensor at a time and written as they come.

``safetensors`` reads. Its ``save_file`` wants a whole file's tensors in memory, twice over; the format is a header and
the tensors' bytes, which are written here one by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from typing_extensions import Self

from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_PATTERN = "model{suffix}.safetensors"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CODES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_CODE_OF = {dtype: code for code, dtype in _CODES.items()}

# Computed, not learnt; checkpoints of the first Llama have them.
_IGNORED = ".rotary_emb.inv_freq"


class SafetensorsFolder:
    """The tensors of a Hugging Face checkpoint. ``shapes``: tensor name → shape; ``single``: the file that holds them
    where there is no index.

    Raises:
        ConvertError: when the folder has no safetensors, a file of the index is missing or damaged, or a tensor is not
            where the index says.
    """

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        self.folder, self._single = folder, single
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        index = self._index()
        for path in self._files(index):
            for name, shape, code in self._header(path):
                if name.endswith(_IGNORED):
                    continue
                if name in self._file_of:
                    raise ConvertError(f"{folder}: {name} is in {self._file_of[name].name} and in {path.name}")
                if code not in _CODES:
                    raise ConvertError(
                        f"{path}: {name} has dtype {code}; known are {', '.join(_CODES)}: give the unquantized "
                        "checkpoint"
                    )
                self._file_of[name], self.shapes[name], self._dtypes[name] = path, shape, _CODES[code]
        missing = sorted(name for name in index if name not in self._file_of and not name.endswith(_IGNORED))
        if missing:
            raise ConvertError(
                f"{folder / INDEX}: {missing[0]} is not in {index[missing[0]]} ({len(missing)} such tensors)"
            )
        unlisted = sorted(self.shapes.keys() - index.keys()) if index else []
        if unlisted:
            raise ConvertError(f"{folder}: {unlisted[0]} is in no line of {INDEX} ({len(unlisted)} such tensors)")
        if not self.shapes:
            raise ConvertError(f"{folder} holds no tensors")

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(torch.Size(shape).numel() * self._dtypes[name].itemsize for name, shape in self.shapes.items())

    @property
    def dtypes(self) -> dict[torch.dtype, str]:
        """Each dtype, with the first tensor that has it."""
        return {dtype: name for name, dtype in reversed(self._dtypes.items())}

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of all tensors. Raises ConvertError where there are several."""
        if len(self.dtypes) > 1:
            each = " and ".join(sorted(f"{name} {NAMES[dtype]}" for dtype, name in self.dtypes.items()))
            raise ConvertError(f"{self.folder}: dtypes differ ({each}): choose one with --dtype")
        return next(iter(self.dtypes))

    def read(self, name: str) -> torch.Tensor:
        """A copy of the tensor ``name``.

        Raises:
            ConvertError: its file is damaged.
        """
        path = self._file_of[name]
        try:
            # Opened for each tensor: pages of a mapped file stay resident until it is closed.
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise ConvertError(f"{path}: {name}: {error}") from error

    def _index(self) -> Mapping[str, str]:
        if not (self.folder / INDEX).is_file():
            return {}
        weight_map = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConvertError(f"{self.folder / INDEX} has no weight_map")
        return weight_map

    def _files(self, index: Mapping[str, str]) -> list[Path]:
        names = sorted(set(index.values())) or [self._single]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing and not index:
            others = sorted(path.name for path in self.folder.glob("*.bin")) + sorted(
                path.name for path in self.folder.glob("*.safetensors")
            )
            there = f"; there are {', '.join(others[:3])}" if others else ""
            raise ConvertError(
                f"{self.folder} has neither {INDEX} nor {self._single}{there}: only safetensors are read"
            )
        if missing:
            raise ConvertError(
                f"{self.folder}: {len(missing)} of the {len(names)} files in {INDEX} are missing: "
                f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
            )
        return [self.folder / name for name in names]

    def _header(self, path: Path) -> list[tuple[str, tuple[int, ...], str]]:
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
                return [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()]
        except (OSError, SafetensorError) as error:
            raise ConvertError(f"{path} is damaged: {error}") from error


class SafetensorsWriter:
    """Writes tensors, given in the order of ``shapes``, to shards of up to ``max_shard_size``, with an index.

    ``max_shard_size``: bytes, or as ``5GB``.

    Raises:
        ConvertError: for a ``max_shard_size`` that is no size.
    """

    def __init__(
        self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_size: int | str
    ) -> None:
        self._folder, self._dtype = folder, dtype
        self._sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
        try:
            plan = split_state_dict_into_shards_factory(
                self._sizes, get_storage_size=int, filename_pattern=_PATTERN, max_shard_size=max_shard_size
            )
        except ValueError as error:
            raise ConvertError(f"--max-shard-size {max_shard_size}: {error}") from error
        self._file_of: dict[str, str] = plan.tensor_to_filename
        self._remaining = {name: list(names) for name, names in plan.filename_to_tensors.items()}
        self._open: dict[str, IO[bytes]] = {}
        self._shapes = shapes
        if plan.is_sharded:
            index = {"metadata": {"total_size": sum(self._sizes.values())}, "weight_map": self._file_of}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def files(self) -> list[str]:
        """Names of the shards."""
        return sorted(set(self._file_of.values()))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append ``tensor``, the next of its shard."""
        shard = self._file_of[name]
        if shard not in self._open:
            self._open[shard] = (self._folder / shard).open("wb")
            self._open[shard].write(self._header(self._remaining[shard]))
        expected = self._remaining[shard].pop(0)
        assert (name, tuple(tensor.shape)) == (expected, self._shapes[name]), (name, tensor.shape, expected)
        data: Any = tensor.to(self._dtype).contiguous().view(-1).view(torch.uint8).numpy()
        self._open[shard].write(data)
        if not self._remaining[shard]:
            _finish(self._open.pop(shard))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()
        remaining = [name for names in self._remaining.values() for name in names]
        assert error is not None or not remaining, remaining

    def _header(self, names: Sequence[str]) -> bytes:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in names:
            end = start + self._sizes[name]
            header[name] = {"dtype": _CODE_OF[self._dtype], "shape": self._shapes[name], "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _finish(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
