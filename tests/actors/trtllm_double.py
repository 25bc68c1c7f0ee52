"""TensorRT-LLM, played by torch on CPU, so that NeMo's own exporter and NeMo-Aligner's own wrapper run unedited.

``install()`` puts stand-ins for ``tensorrt_llm``, ``tensorrt`` and ``mpi4py`` where these are imported from. What they
keep to: an engine has its *own copy* of the weights, taken when it is built and at every refit, and decodes from that
copy only, with a forward pass written here; engines live in files, and are read from there; a process has one decoder;
only the first pipeline stage is told the answer; the list of stop words has the engine's number of rows; an answer's
length counts its prompt. ``Faults`` makes it misbehave.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import json
import math
import os
import pickle
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

from tests.actors.trtllm_llama import Llama


@dataclass
class Faults:
    """``forgotten``: a weight that engines want and no refit brings. ``invalid_at``: the number of a response's id that
    is none."""

    forgotten: str | None = None
    invalid_at: int | None = None
    builds: int = 0
    refits: int = 0
    loads: int = 0


FAULTS = Faults()


# --- mpi4py


@dataclass(frozen=True)
class Comm:
    rank: int

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    def Split(self, color: int, key: int) -> Comm:
        return Comm(key)


# --- tensorrt_llm.runtime


class SamplingConfig:
    def __init__(self, end_id: int, pad_id: int, **kwargs: Any) -> None:
        self.end_id, self.pad_id = end_id, pad_id
        self.temperature, self.top_k, self.top_p = 1.0, 0, 1.0
        self.max_new_tokens, self.stop_words_list, self.random_seed = 1, None, None
        self.repetition_penalty, self.return_dict, self.output_sequence_lengths = 1.0, False, False
        assert not self.update(**kwargs), kwargs

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """What is known is set; what is not is returned."""
        for name in list(kwargs):
            if hasattr(self, name):
                setattr(self, name, kwargs.pop(name))
        return kwargs


@dataclass
class Built:
    """An engine in memory: configuration and this rank's weights under TensorRT-LLM's names."""

    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    refittable: bool = True


class ModelRunner:
    def __init__(self, engine: Built) -> None:
        FAULTS.loads += 1
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[engine.config["pretrained_config"]["dtype"]]
        self.session = types.SimpleNamespace(runtime=types.SimpleNamespace(engine=engine), dtype=dtype)
        self._engine = engine
        self._whole: tuple[int, Llama] | None = None

    @classmethod
    def from_engine(cls, engine: Built, rank: Any) -> ModelRunner:
        return cls(engine)

    def generate(
        self, batch_input_ids: Sequence[torch.Tensor], sampling_config: SamplingConfig, streaming: bool
    ) -> Any:
        build, mapping = self._engine.config["build_config"], self._engine.config["pretrained_config"]["mapping"]
        limits, draw = sampling_config, sampling_config
        assert not streaming
        assert len(batch_input_ids) <= build["max_batch_size"]
        assert max(map(len, batch_input_ids)) <= build["max_input_len"]
        assert limits.max_new_tokens <= build["max_output_len"]
        assert len(limits.stop_words_list) == len(batch_input_ids)
        model = self.whole()
        said = []
        for row, prompt in enumerate(batch_input_ids):
            stops = _stop_words(*limits.stop_words_list[row].tolist())
            seed = 0 if draw.random_seed is None else int(draw.random_seed[row])
            said.append(self._row(model, prompt.tolist(), stops, draw, torch.Generator().manual_seed(seed)))
        longest = max(map(len, batch_input_ids)) + limits.max_new_tokens
        ids = torch.full((len(said), 1, longest), limits.pad_id, dtype=torch.int32)
        for row, every in enumerate(said):
            ids[row, 0, : len(every)] = torch.tensor(every, dtype=torch.int32)
        sizes = torch.tensor([[len(every)] for every in said], dtype=torch.int32)
        return {"output_ids": ids, "sequence_lengths": sizes} if mapping["pp_rank"] == 0 else None

    def _row(
        self, model: Llama, prompt: list[int], stops: list[list[int]], how: Any, draw: torch.Generator
    ) -> list[int]:
        ids = list(prompt)
        for number in range(how.max_new_tokens):
            logits = model.logits(ids)[-1] / how.temperature
            if how.top_k:
                logits[logits < logits.topk(how.top_k).values[-1]] = -math.inf
            index = int(torch.multinomial(logits.softmax(-1), 1, generator=draw))
            if FAULTS.invalid_at == number:
                index = 1_000_000
            ids.append(index)
            if any(ids[len(prompt) :][-len(stop) :] == stop for stop in stops):
                break
        return ids

    def whole(self) -> Llama:
        """The whole model from the shards of those who decode together."""
        if self._whole is not None and self._whole[0] == FAULTS.refits:
            return self._whole[1]
        from megatron.core import parallel_state

        config = self._engine.config["pretrained_config"]
        split = config["mapping"]["pp_size"] > 1
        group = parallel_state.get_model_parallel_group() if split else parallel_state.get_tensor_model_parallel_group()
        shards: list[Any] = [None] * torch.distributed.get_world_size(group)
        mine = (config["mapping"]["tp_rank"], config["mapping"]["pp_rank"], self._engine.weights)
        torch.distributed.all_gather_object(shards, mine, group=group)
        self._whole = (FAULTS.refits, Llama(config, sorted(shards, key=lambda shard: shard[:2])))
        return self._whole[1]


def _stop_words(ids: list[int], ends: list[int]) -> list[list[int]]:
    ends = [end for end in ends if end > 0]
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# --- building, saving, reading


class PretrainedConfig:
    def __init__(self, **keys: Any) -> None:
        self.rotary_scaling: dict[str, Any] | None = None
        self.__dict__ |= keys


class Mapping:
    def __init__(self, world_size: int, rank: int, tp_size: int, pp_size: int) -> None:
        assert world_size == tp_size * pp_size
        self.world_size, self.rank, self.tp_size, self.pp_size = world_size, rank, tp_size, pp_size
        self.tp_rank, self.pp_rank = rank % tp_size, rank // tp_size


class Model:
    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self.weights: dict[str, torch.Tensor] = {}

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Model:
        return cls(config)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = {name: value.clone() for name, value in weights.items()}


@dataclass
class BuiltOnDisk:
    """What a build returns: saved as ``rankN.engine``, with a configuration that goes to JSON."""

    keys: dict[str, Any]
    weights: dict[str, torch.Tensor]
    config: Any = field(init=False)

    def __post_init__(self) -> None:
        self.config = types.SimpleNamespace(to_dict=lambda: self.keys)

    def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        rank = self.keys["pretrained_config"]["mapping"]["rank"]
        (Path(folder) / f"rank{rank}.engine").write_bytes(pickle.dumps(self.weights))


def build(model: Model, config: dict[str, Any]) -> BuiltOnDisk:
    FAULTS.builds += 1
    pretrained = {name: value for name, value in vars(model.config).items() if _is_json(value)}
    pretrained["mapping"] = vars(model.config.mapping)  # type: ignore[attr-defined]
    return BuiltOnDisk({"pretrained_config": pretrained, "build_config": config}, model.weights)


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str | dict)


class GptJsonConfig:
    def __init__(self, keys: dict[str, Any]) -> None:
        build = keys["build_config"]
        names = ("max_beam_width", "max_batch_size", "max_input_len", "max_seq_len")
        self.model_config = types.SimpleNamespace(**{name: build[name] for name in names})
        self.tensor_parallelism = keys["pretrained_config"]["mapping"]["tp_size"]
        self.pipeline_parallelism = keys["pretrained_config"]["mapping"]["pp_size"]

    @classmethod
    def parse_file(cls, path: Path) -> GptJsonConfig:
        return cls(json.loads(Path(path).read_text()))


class Engine:
    @staticmethod
    def from_buffer(engine_buffer: bytearray, json_config_str: str, rank: int) -> Built:
        config = json.loads(json_config_str)
        assert config["pretrained_config"]["mapping"]["rank"] == rank
        return Built(config, pickle.loads(bytes(engine_buffer)))


# --- tensorrt


@dataclass
class Weights:
    dtype: Any
    address: int
    count: int


class Refitter:
    def __init__(self, engine: Built, logger: Any) -> None:
        self._engine = engine

    def get_all_weights(self) -> list[str]:
        return list(self._engine.weights) + ([FAULTS.forgotten] if FAULTS.forgotten else [])

    def get_weights_prototype(self, name: str) -> Any:
        return types.SimpleNamespace(dtype=self._engine.weights[name].dtype)

    def set_named_weights(self, name: str, weights: Weights, location: Any) -> bool:
        """Copies from the address it is given."""
        own = self._engine.weights[name]
        assert (own.numel(), own.dtype) == (weights.count, weights.dtype)
        fresh = torch.empty_like(own, memory_format=torch.contiguous_format)
        ctypes.memmove(fresh.data_ptr(), weights.address, own.numel() * own.element_size())
        self._engine.weights[name] = fresh
        return True

    def refit_cuda_engine(self) -> bool:
        FAULTS.refits += 1
        return True


# --- installation


class _Module(types.ModuleType):
    """What nobody here needs is there when it is imported, and says nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] in ("tensorrt_llm", "tensorrt", "mpi4py", "pytriton", "tiktoken"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to execute."""


def install() -> None:
    """Before NeMo is imported, in a process whose process group is up or whose RANK is set."""
    import os

    sys.meta_path.insert(0, _Finder())
    import mpi4py
    import tensorrt
    import tensorrt_llm
    from mpi4py import MPI

    mpi4py.MPI = MPI
    MPI.COMM_WORLD = Comm(int(os.environ.get("RANK", "0")))
    llm, trt = _namespace("tensorrt_llm"), tensorrt
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    llm("_utils").mpi_comm = lambda: MPI.COMM_WORLD
    llm("_utils").str_dtype_to_torch = dtypes.__getitem__
    llm("_utils").torch_dtype_to_trt = lambda dtype: dtype
    tensorrt_llm.mpi_rank = lambda: MPI.COMM_WORLD.Get_rank()
    tensorrt_llm.Mapping = Mapping
    llm("bindings").GptJsonConfig = GptJsonConfig
    llm("runtime").SamplingConfig, llm("runtime").ModelRunner = SamplingConfig, ModelRunner
    llm("runtime").ModelRunnerCpp = type("ModelRunnerCpp", (), {})
    llm("runtime").ModelConfig = type("ModelConfig", (), {})
    llm("runtime.generation").DISABLE_TORCH_DEVICE_SET = True
    llm("builder").Engine = Engine
    llm("builder").BuildConfig = types.SimpleNamespace(from_dict=lambda keys, plugin_config: keys)
    llm("_common").check_max_num_tokens = lambda **limits: (limits["max_seq_len"] * limits["max_batch_size"], 1)
    llm("commands.build").build = build
    llm("functional").non_gated_version = lambda name: {"swiglu": "silu", "fast-swiglu": "silu"}.get(name, name)
    llm("models").LLaMAForCausalLM = Model
    llm("models.llama.config").LLaMAConfig = PretrainedConfig
    llm("models.modeling_utils").optimize_model = lambda model, **keys: model
    trt.Refitter, trt.Weights, trt.DataType = Refitter, Weights, torch.dtype


def _namespace(package: str) -> Any:
    def module(path: str) -> Any:
        found = importlib.import_module(f"{package}.{path}")
        parent: Any = sys.modules[package]
        for name in path.split("."):
            child = sys.modules[f"{parent.__name__}.{name}"]
            setattr(parent, name, child)
            parent = child
        return found

    return module
