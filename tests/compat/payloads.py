"""Harmless files that run something when they are unpickled freely: each makes an empty file, the marker."""

from __future__ import annotations

import functools
import io
import operator
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata


class Calls:
    """Unpickled, it is what ``function`` returns."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def objects(marker: Path) -> dict[str, Any]:
    """The name that a refusal has to have → an object whose unpickling makes ``marker``."""
    path = str(marker)
    inner = pickle.dumps(Calls(open, path, "w"))
    return {
        "posix.system": Calls(os.system, f"touch {path}"),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", path]),
        "builtins.eval": Calls(eval, f"open({path!r}, 'w')"),
        "builtins.exec": Calls(exec, f"open({path!r}, 'w')"),
        "io.open": Calls(open, path, "w"),
        "functools.partial": Calls(functools.partial(open, path, "w")),
        "pickle.loads": Calls(pickle.loads, inner),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, inner),
        "operator.methodcaller": Calls(operator.methodcaller("touch"), marker),
        "shutil.copyfile": Calls(shutil.copyfile, os.devnull, path),
        "torch.serialization.load": Calls(torch.serialization.load, path),
    }


def torch_saved(value: Any, new: bool = True) -> bytes:
    """``value`` as ``torch.save`` writes it, in its present format or in that of before 2020."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def written_by_hand(marker: Path) -> dict[str, bytes]:
    """The name that a refusal has to have → a pickle that makes ``marker`` by a detour over what is harmless."""
    touch = f"V{marker}\n".encode()
    shell = f"Vtouch {marker}\n".encode()
    return {
        # An attribute of an object that may be built.
        "builtins.getattr": b"cbuiltins\ngetattr\n(cpathlib\nPosixPath\n(" + touch + b"tRVtouch\ntR(tR.",
        # An attribute of a class, by a name of an enumeration's class.
        "builtins.getattr ": b"c__builtin__\ngetattr\n(cargparse\nNamespace\nV__init__\ntR.",
        # Dots: a way into the modules that a harmless module has imported.
        "torch.os.system": b"\x80\x04Vtorch\nVos.system\n\x93(" + shell + b"tR.",
        "torch._utils.os.system": b"\x80\x04Vtorch._utils\nVos.system\n\x93(" + shell + b"tR.",
        "collections._sys": b"ccollections\n_sys\n.",
        "posix.system": b"c__builtin__\nset\n(tR0(" + shell + b"iposix\nsystem\n.",
        # An instance that is told its new state by a function of the pickle's choice.
        "builtins.print": b"cargparse\nNamespace\n(t\x81}V__setstate__\ncbuiltins\nprint\nsb.",
    }


def torchscript(folder: Path) -> bytes:
    """An archive that ``torch.load`` hands to ``torch.jit.load``."""

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Module()).save(str(folder / "script.pt"))
    return (folder / "script.pt").read_bytes()


def metadata_with(value: Any) -> bytes:
    """A checkpoint's ``.metadata`` in which ``value`` hides."""
    metadata = Metadata({"model.w.weight": BytesStorageMetadata()})
    metadata.planner_data = [value]
    return pickle.dumps(metadata)


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """A ``.nemo`` file of these files."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
