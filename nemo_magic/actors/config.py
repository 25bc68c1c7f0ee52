"""What can be set about the actors and about decoding. Imports neither torch nor NeMo."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from nemo_magic.config_checks import CheckedConfig, NonNegativeInt, OneOf, PositiveFloat, PositiveInt
from nemo_magic.model_config import ModelConfig
from nemo_magic.net.endpoint import GenerationEndpointConfig


@dataclass
class SamplingConfig(CheckedConfig):
    """How a role's next token is drawn; NeMo's own key names.

    ``temperature`` also scales the log-probabilities that are trained on. ``top_k`` 0 and ``top_p`` 1.0 truncate
    nothing. ``use_greedy`` takes the likeliest token instead. ``end_strings`` end a response beside the tokenizer's end
    token.
    """

    KEY: ClassVar[str] = "sampling_params"

    temperature: float = 1.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    use_greedy: bool = False
    end_strings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(
                f"sampling_params.temperature={self.temperature} must be greater than 0; for temperature 0 set "
                "sampling_params.use_greedy=true"
            )
        if not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(
                f"sampling_params.temperature={self.temperature} must be between 1e-6 and 1e6: what it divides "
                "has to stay within float32"
            )
        if "" in self.end_strings:
            raise ValueError("sampling_params.end_strings contains an empty string, which would end every response")


@dataclass
class LengthConfig(CheckedConfig):
    """Lengths in tokens.

    ``max_length`` bounds a response, end token included; ``min_length`` what comes before its end token.
    ``max_prompt_length`` bounds a prompt, chat template included; null means what ``model.encoder_seq_length`` leaves:
    ``encoder_seq_length - max_length``.
    """

    KEY: ClassVar[str] = "length_params"

    max_length: int = 256
    min_length: int = 1
    max_prompt_length: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"length_params.min_length={self.min_length} must be between 0 and "
                f"length_params.max_length={self.max_length}"
            )

    def prompt_room(self, encoder_seq_length: int) -> int:
        """The longest prompt, in tokens, that may be given to a model of ``encoder_seq_length`` positions."""
        room = encoder_seq_length - self.max_length
        return room if self.max_prompt_length is None else min(room, self.max_prompt_length)


_FIXED = ("model", "messages", "stop", "stream")
_OMITTABLE = ("temperature", "top_p", "max_tokens", "seed", "n")


@dataclass
class RemoteConfig(GenerationEndpointConfig):
    """An OpenAI-compatible chat endpoint that plays a role; without ``urls`` the role is a local model.

    The keys are those of GenerationEndpointConfig. In ``extra_body`` null leaves out one of temperature, top_p,
    max_tokens, seed and n, for servers that refuse it. ``rate_limit`` holds for all ranks together.
    """

    KEY: ClassVar[str] = "remote"

    max_concurrency: PositiveInt = 32
    request_timeout: PositiveFloat = 600.0
    give_up_after: PositiveFloat = 1800.0
    backoff_max: PositiveFloat = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_extra_body(_FIXED, _OMITTABLE, "the role's own settings")


@dataclass
class HuggingFaceConfig(CheckedConfig):
    """A Hugging Face model that plays a role in this process, by transformers, where the role does not learn.

    ``path``: a folder with config.json, safetensors and a tokenizer with a chat template; null: none. ``dtype``:
    ``auto`` is the checkpoint's own. ``device``: torch's name of one, ``auto`` to spread over all (needs accelerate);
    null is that of ``trainer.accelerator``.
    """

    KEY: ClassVar[str] = "hf"

    path: str | None = None
    dtype: Annotated[str, OneOf("auto", "float32", "bfloat16", "float16")] = "auto"
    device: str | None = None


@dataclass
class ActorConfig:
    """One role's model.

    ``restore_from_path``: starting weights, a folder that ``nemo-magic sft`` or ``nemo-magic train`` wrote, or a
    ``.nemo`` file; null starts from random weights. ``trust_weights``: what is unpickled for this role, here or when a
    run goes on, may run any code. ``model``: any keys of ``model`` that differ for this role, e.g.
    ``{optim: {lr: 3e-5}}``; what is not named here is as in ``model``. ``remote``: a server that plays the role
    instead, where it does not learn; ``hf``: a Hugging Face model, in an evaluation.
    """

    restore_from_path: str | None = None
    trust_weights: bool = False
    model: dict[str, Any] = field(default_factory=dict, metadata={"part_of": ModelConfig})
    sampling_params: SamplingConfig = field(default_factory=SamplingConfig)
    length_params: LengthConfig = field(default_factory=LengthConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    hf: HuggingFaceConfig = field(default_factory=HuggingFaceConfig)

    @property
    def is_remote(self) -> bool:
        """Whether a server plays the role, and not a local model."""
        return bool(self.remote.urls)

    @property
    def hf_path(self) -> str | None:
        """The Hugging Face model that plays the role: ``hf.path``, or ``restore_from_path`` where it is one."""
        if self.is_remote:
            return None
        return self.hf.path or (self.restore_from_path if is_hf_folder(self.restore_from_path) else None)

    @property
    def is_megatron(self) -> bool:
        """Whether the role is a Megatron actor of this world."""
        return not self.is_remote and self.hf_path is None


def is_hf_folder(path: str | None) -> bool:
    """Whether ``path`` is a folder as transformers writes it: config.json beside safetensors."""
    folder = Path(path) if path else None
    return folder is not None and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


TRTLLM_MODEL_TYPES = ("gpt", "gptnext", "llama", "starcoder", "gemma", "falcon", "mixtral")
"""What this stack's exporter to TensorRT-LLM can build (megatron.core.export.model_type)."""


@dataclass
class TRTLLMConfig(CheckedConfig):
    """Decoding by TensorRT-LLM; NeMo-Aligner's own key names.

    ``reshard``: an engine holds all layers of its tensor-parallel shard, and the pipeline stages decode different rows.
    ``max_input_len``: the longest prompt, in tokens; null means the longest that a role may be given (see
    ``length_params``). ``unload_engine_train``: the engine leaves device memory while a role learns, and is read from
    ``engine_dir`` (a folder of each node) before it is refitted.
    """

    KEY: ClassVar[str] = "generation.trt_llm"

    reshard: bool = True
    model_type: Annotated[str, OneOf(*TRTLLM_MODEL_TYPES)] = "llama"
    max_input_len: PositiveInt | None = None
    unload_engine_train: bool = False
    engine_dir: str = "/tmp/nemo_magic_trt_llm"


@dataclass
class VLLMConfig(CheckedConfig):
    """Decoding by vLLM; its own key names.

    ``gpu_memory_utilization``: the share of a device's memory that an engine takes, for its weights and its cache; the
    actors' weights are beside it. On CPU the cache has the size that ``generation.batch_size`` rows need.
    """

    KEY: ClassVar[str] = "generation.vllm"

    gpu_memory_utilization: Annotated[float, Interval(gt=0, lt=1)] = 0.4


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""The dimensions of adapters that vLLM has kernels for; a smaller adapter is run at the next one."""

VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The sizes of attention heads that vLLM has a kernel for on CPU."""

NATIVE, TRT_LLM, VLLM = "native", "trt_llm", "vllm"


@dataclass
class GenerationConfig(CheckedConfig):
    """Decoding. ``engine``: the actor's own Megatron model, or an engine that is given its weights (``trt_llm``,
    ``vllm``: their options). ``batch_size``: rows decoded at once on a rank, validation included.

    Native decoding: rows decoded together differ by at most ``max_prompt_spread`` prompt tokens; 0 means equal lengths,
    which wastes nothing, and more means fewer and larger batches.
    """

    KEY: ClassVar[str] = "generation"

    engine: Annotated[str, OneOf(NATIVE, TRT_LLM, VLLM)] = NATIVE
    batch_size: PositiveInt = 256
    max_prompt_spread: NonNegativeInt = 0
    trt_llm: TRTLLMConfig = field(default_factory=TRTLLMConfig)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
