"""Nothing that is unpickled as weights runs code, however it asks for it and whoever unpickles it."""

from __future__ import annotations

import collections
import importlib
import importlib.util
import io
import pickle
import re
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import TensorProperties

from nemo_magic.compat.restricted_pickle import HARMLESS, UnsafeWeightsError, only_weights
from tests.compat.payloads import Calls, objects, torch_saved, torchscript, written_by_hand

READERS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "pickle.load": (pickle.dumps, lambda data: pickle.load(io.BytesIO(data))),
    "pickle.loads": (pickle.dumps, lambda data: pickle.loads(data)),
    "pickle.Unpickler": (pickle.dumps, lambda data: pickle.Unpickler(io.BytesIO(data)).load()),
    "protocol 0": (lambda value: pickle.dumps(value, 0), lambda data: pickle.loads(data)),
    "torch.load": (torch_saved, lambda data: torch.load(io.BytesIO(data))),
    "torch.load, freely": (torch_saved, lambda data: torch.load(io.BytesIO(data), weights_only=False)),
    "torch.load, old": (lambda value: torch_saved(value, new=False), lambda data: torch.load(io.BytesIO(data))),
    "numpy.load": (
        lambda value: _numpy_saved(value),
        lambda data: np.load(io.BytesIO(data), allow_pickle=True),
    ),
}
PAYLOADS = (
    "posix.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "io.open",
    "functools.partial",
    "pickle.loads",
    "torch.storage._load_from_bytes",
    "operator.methodcaller",
    "shutil.copyfile",
    "torch.serialization.load",
)


def _numpy_saved(value: Any) -> bytes:
    file, array = io.BytesIO(), np.empty(1, dtype=object)
    array[0] = value
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_would_run_is_refused_by_its_name_whoever_reads_it(reader: str, payload: str, tmp_path: Path) -> None:
    write, read = READERS[reader]
    data = write({"weights": [1.0], "rest": objects(tmp_path / "marker")[payload]})
    with pytest.raises(UnsafeWeightsError) as error, only_weights("some/weights"):
        read(data)
    assert str(error.value).startswith("some/weights wants ")
    assert f"{payload}, which" in str(error.value)
    assert "--trust-weights" in str(error.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", written_by_hand(Path("x")))
def test_no_detour_over_harmless_names_leads_further(name: str, tmp_path: Path) -> None:
    data = written_by_hand(tmp_path / "marker")[name]
    with pytest.raises(UnsafeWeightsError, match=re.escape(f"wants {name.strip()}")), only_weights("x"):
        pickle.loads(data)
    assert not (tmp_path / "marker").exists()


def test_torchscript_is_not_run(tmp_path: Path) -> None:
    data = torchscript(tmp_path)
    for weights_only in (None, True, False):
        with pytest.raises(UnsafeWeightsError, match=r"wants torch\.jit\.load"), only_weights("x"):
            torch.load(io.BytesIO(data), weights_only=weights_only)


def test_a_refusal_that_a_reader_swallows_is_raised_all_the_same(tmp_path: Path) -> None:
    def swallowing() -> None:
        for name in ("subprocess.Popen", "posix.system", "subprocess.Popen"):
            with suppress(pickle.UnpicklingError):
                pickle.loads(pickle.dumps(objects(tmp_path / "marker")[name]))

    with pytest.raises(UnsafeWeightsError, match="wants subprocess.Popen, posix.system, which"), only_weights("x"):
        swallowing()


def test_what_is_trusted_is_read_as_it_asks(tmp_path: Path) -> None:
    for number, data in enumerate((torch_saved(Calls(Path.touch, tmp_path / "0")), torchscript(tmp_path))):
        with only_weights("x", trusted=True):
            torch.load(io.BytesIO(data), weights_only=True)
        assert number or (tmp_path / "0").exists()


def test_afterwards_everything_is_as_it_was() -> None:
    before = (torch.load, torch.jit.load, pickle.load, pickle.loads, pickle.Unpickler)
    for trusted in (True, False):
        with only_weights("x", trusted):
            assert torch.load is not before[0]
        assert (torch.load, torch.jit.load, pickle.load, pickle.loads, pickle.Unpickler) == before


_SINGLE = [torch.float32, torch.bfloat16, torch.Size([2, 3]), torch.device("cpu"), np.float32(1.5), TensorProperties()]
VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.binary(max_size=5).map(bytearray)
    | st.complex_numbers(allow_nan=False)
    | st.frozensets(st.integers())
    | st.sets(st.integers())
    | st.sampled_from([*_SINGLE, Path("/a"), slice(1, None), np.dtype("int64")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(collections.OrderedDict)
        | st.builds(Namespace, value=inner)
    ),
    max_leaves=8,
)


@given(VALUES, st.integers(2, 5))
def test_what_weights_are_made_of_is_read_as_it_was_written(value: Any, protocol: int) -> None:
    with only_weights("x"):
        assert pickle.loads(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back(dtype: torch.dtype, new: bool) -> None:
    value = {"w": torch.arange(6).reshape(2, 3).to(dtype), "p": torch.nn.Parameter(torch.ones(2))}
    data = torch_saved(value, new)
    with only_weights("x"):
        found = torch.load(io.BytesIO(data), map_location="cpu")
    assert torch.equal(found["w"], value["w"])
    assert torch.equal(found["p"], value["p"])


def test_what_is_let_in_calls_nothing_and_reads_nothing() -> None:
    """Classes that hold values, and torch's and numpy's functions that put tensors and arrays together."""
    here = {module: names for module, names in HARMLESS.items() if _is_here(module)}
    functions = {
        f"{module}.{name}"
        for module, names in here.items()
        for name in names
        if not isinstance(getattr(importlib.import_module(module), name, object), type)
    }
    assert functions == {
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.serialization._get_layout",
    }


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
