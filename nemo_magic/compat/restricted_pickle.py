"""Weights are read without running code: pickles in them build tensors, containers and metadata, and nothing else.

A pickle names functions to call, so reading one runs what its author chose. torch.distributed's ``.metadata``,
Megatron's ``common.pt`` and the extra states of layers are pickles, and torch, Megatron, TransformerEngine and zarr
read them, each in its own way. All of these ways end in the few functions that ``only_weights`` replaces for a while.
"""

from __future__ import annotations

import enum
import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

HARMLESS = {
    "builtins": {"bytearray", "bytes", "complex", "dict", "frozenset", "list", "set", "slice", "tuple"},
    "collections": {"Counter", "OrderedDict", "defaultdict"},
    "argparse": {"Namespace"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
    "_io": {"BytesIO"},
    "torch": {"Size", "Tensor", "device"},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed._shard.metadata": {"ShardMetadata"},
    "torch.distributed._shard.sharded_tensor.metadata": {
        "MEM_FORMAT_ENCODING", "ShardedTensorMetadata", "TensorProperties",
    },
    # Megatron-LM's own checkpoints keep its command line in common.pt.
    "megatron.core.enums": {"ModelType"},
    "megatron.core.transformer.enums": {"AttnBackend", "AttnMaskType", "AttnType", "LayerType", "ModelType"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "transformer_engine.common.recipe": {"DelayedScaling", "Format", "_FormatHelper"},
}  # fmt: skip
"""Module → the classes and functions that weights may name. Whatever arguments they get, they only hold values."""

_Unpickler = pickle.Unpickler


class UnsafeWeightsError(Exception):
    """Weights name classes or functions that no weights need; the message has the names."""


@contextmanager
def only_weights(source: str | Path, trusted: bool = False) -> Iterator[None]:
    """Within the context, whatever this process unpickles may name only what is in ``HARMLESS``.

    Args:
        source: what is read, for the message.
        trusted: change nothing, and run what the weights ask for, also where torch by itself would not.

    Raises:
        UnsafeWeightsError: something else was named, whatever became of that error on its way here.
    """
    import torch

    read, refused = torch.load, list[str]()

    def load(f: Any, map_location: Any = None, pickle_module: Any = None, **options: Any) -> Any:
        # Neither torch's default, which changed with 2.6, nor its own check, which before 2.6 could be got around.
        return read(f, map_location, **{**options, "weights_only": False})

    def jit_load(*args: Any, **options: Any) -> Any:
        raise pickle.UnpicklingError(_refuse(refused, "torch.jit.load"))

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "load", load))
        if trusted:
            yield
            return
        unpickler = _restricted(refused)
        for owner, name, value in (
            (torch.jit, "load", jit_load),
            (pickle, "Unpickler", unpickler),
            (pickle, "load", lambda file, **options: unpickler(file, **options).load()),
            (pickle, "loads", lambda data, /, **options: unpickler(io.BytesIO(data), **options).load()),
        ):
            stack.enter_context(patch.object(owner, name, value))
        try:
            yield
        except BaseException as error:
            if not refused:
                raise
            raise UnsafeWeightsError(_message(source, refused)) from error
    if refused:
        raise UnsafeWeightsError(_message(source, refused))


def _restricted(refused: list[str]) -> type[pickle.Unpickler]:
    class RestrictedUnpickler(_Unpickler):
        """Builds what is in ``HARMLESS``; the name of anything else goes to ``refused``."""

        def find_class(self, module: str, name: str) -> Any:
            # Up to protocol 2 pickles have Python 2's names.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            if (module, name) == ("builtins", "getattr"):
                return _enum_member(refused)
            if (module, name) == ("_codecs", "encode"):
                return _latin1
            if name in HARMLESS.get(module, ()) or (module == "torch" and _is_dtype(name)):
                with suppress(ImportError, AttributeError):  # of another version than is here
                    return super().find_class(module, name)
            raise pickle.UnpicklingError(_refuse(refused, f"{module}.{name}"))

    return RestrictedUnpickler


def _is_dtype(name: str) -> bool:
    import torch

    return isinstance(vars(torch).get(name), torch.dtype)


def _enum_member(refused: list[str]) -> Callable[[Any, str], Any]:
    """What enumerations of Python 3.11 are pickled with, for them alone."""

    def getattr(owner: Any, name: str) -> Any:
        if not (isinstance(owner, type) and issubclass(owner, enum.Enum) and name in owner.__members__):
            raise pickle.UnpicklingError(_refuse(refused, "builtins.getattr"))
        return owner[name]

    return getattr


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What bytes are pickled with in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def _refuse(refused: list[str], name: str) -> str:
    refused.append(name)
    return f"{name} is not what weights are made of"


def _message(source: str | Path, refused: list[str]) -> str:
    names = ", ".join(dict.fromkeys(refused))
    return (
        f"{source} wants {names}, which weights do not consist of: reading it could run code of whoever wrote it, and "
        "it was not read. Get these weights as safetensors (`nemo-magic convert hf-to-nemo` reads them), or give "
        "--trust-weights if you know who wrote it"
    )
