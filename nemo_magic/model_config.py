"""A Megatron GPT model under NeMo's own key names, typed. Imports neither torch nor NeMo.

``make_vocab_size_divisible_by`` is the multiple of the padded vocabulary at *every* tensor-parallel size (NeMo
multiplies it by TP, and weights saved at one TP would then not fit another). What only pre-training reads is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval
from omegaconf import MISSING

from nemo_magic.config_checks import (
    CheckedConfig,
    Fraction,
    NonNegativeFloat32,
    NonNegativeInt,
    OneOf,
    PositiveFloat32,
    PositiveInt,
)

ACTIVATIONS = (
    "gelu", "geglu", "reglu", "swiglu", "squared-relu", "fast-geglu", "fast-swiglu", "fast-reglu", "approx-gelu"
)  # fmt: skip
OPTIMIZERS = (
    "distributed_fused_adam", "mcore_distributed_optim", "megatron_fused_adam", "fused_adam", "cpu_fused_adam"
)  # fmt: skip


@dataclass
class TokenizerConfig(CheckedConfig):
    """``library=huggingface`` with ``type`` naming a hub model or a folder is what a chat template needs."""

    KEY: ClassVar[str] = "model.tokenizer"

    library: Annotated[str, OneOf("huggingface", "sentencepiece", "megatron")] = "huggingface"
    type: str | None = None
    model: str | None = None
    vocab_file: str | None = None
    merge_file: str | None = None
    delimiter: str | None = None
    sentencepiece_legacy: bool = False
    use_fast: bool = True
    trust_remote_code: bool = False


@dataclass
class SchedConfig(CheckedConfig):
    """The learning rate over ``max_steps`` optimizer steps: ``warmup_steps`` up to ``lr``, a cosine down to ``min_lr``.

    The last ``constant_steps`` of them stay at ``min_lr``. ``min_lr`` null means ``lr``: the rate is constant
    after warm-up. ``max_steps`` null means the optimizer steps that the run gives the role.
    """

    KEY: ClassVar[str] = "model.optim.sched"

    name: Annotated[str, OneOf("CosineAnnealing")] = "CosineAnnealing"
    warmup_steps: NonNegativeInt = 0
    constant_steps: NonNegativeInt = 0
    min_lr: NonNegativeFloat32 | None = None
    max_steps: int | None = None


@dataclass
class OptimConfig(CheckedConfig):
    """The optimizer; keys that are null are not passed to it.

    ``lr`` null means 1e-6, the paper's; with adapters 1e-5, for their best rate is about ten times that of all weights
    whatever the model and the rank (LoRA Without Regret, 2025, thinkingmachines.ai/blog/lora).
    """

    KEY: ClassVar[str] = "model.optim"

    name: Annotated[str, OneOf(*OPTIMIZERS)] = "distributed_fused_adam"
    lr: PositiveFloat32 | None = None
    weight_decay: NonNegativeFloat32 = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: NonNegativeFloat32 | None = None
    bucket_cap_mb: int | None = None
    overlap_grad_sync: bool | None = None
    overlap_param_sync: bool | None = None
    contiguous_grad_buffer: bool | None = None
    contiguous_param_buffer: bool | None = None
    grad_sync_dtype: str | None = None
    sched: SchedConfig = field(default_factory=SchedConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"{self.KEY}.betas={list(self.betas)} must be two numbers in [0, 1)")
        floor, key = self.sched.min_lr, "model.optim.sched.min_lr"
        if floor is not None and self.lr is not None and not 0 <= floor <= self.lr:
            raise ValueError(f"{key}={floor} must be between 0 and model.optim.lr={self.lr}")
        if self.sched.constant_steps > 0 and floor in (None, self.lr):
            raise ValueError(
                f"model.optim.sched.constant_steps={self.sched.constant_steps} are the steps after a decay, but {key} "
                f"is model.optim.lr={self.lr}: nothing decays. Set min_lr below lr, or constant_steps=0"
            )


LR, ADAPTER_LR = 1e-6, 1e-5

TARGETS = {
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"),
}
"""NeMo's short names of linear layers that can have adapters."""


@dataclass
class LoraConfig(CheckedConfig):
    """Low-rank adapters: to the output of a linear layer ``alpha / adapter_dim · B A x`` is added (arXiv 2106.09685).

    ``target_modules``: which linear layers, by NeMo's names. ``A`` is drawn by ``column_init_method`` (NeMo's
    ``normal`` has a standard deviation of 0.2), ``B`` is zero: a role begins as its base. With ``alpha`` fixed, one
    learning rate serves all ``adapter_dim``.
    """

    KEY: ClassVar[str] = "model.peft.lora_tuning"

    target_modules: list[str] = field(default_factory=lambda: ["all"])
    adapter_dim: PositiveInt = 32
    alpha: PositiveFloat32 = 32.0
    adapter_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    column_init_method: Annotated[str, OneOf("xavier", "normal", "kaiming")] = "xavier"
    row_init_method: Annotated[str, OneOf("zero")] = "zero"
    variant: Annotated[str, OneOf("nemo")] = "nemo"
    layer_selection: list[int] | None = None
    weight_tying: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*TARGETS["all"], *TARGETS)
        for name in self.target_modules:
            if name not in known:
                raise ValueError(f"{self.KEY}.target_modules={name!r} must be one of: {', '.join(known)}")
        if not self.target_modules:
            raise ValueError(f"{self.KEY}.target_modules=[] adapts nothing: name layers, e.g. [all]")
        if self.layer_selection is not None or self.weight_tying:
            key = "weight_tying=true" if self.weight_tying else f"layer_selection={self.layer_selection}"
            raise ValueError(
                f"{self.KEY}.{key}: here every layer has adapters of its own, leave layer_selection=null and "
                "weight_tying=false"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """``target_modules`` without short names."""
        return tuple(dict.fromkeys(one for name in self.target_modules for one in TARGETS.get(name, (name,))))


@dataclass
class PeftConfig(CheckedConfig):
    """Adapters on frozen weights, under NeMo's key names. ``restore_from_path``: adapters to begin with, a folder of
    ``nemo-magic sft``, ``train`` or ``convert``; null begins with new ones."""

    KEY: ClassVar[str] = "model.peft"

    peft_scheme: Annotated[str, OneOf("none", "lora")] = "none"
    restore_from_path: str | None = None
    lora_tuning: LoraConfig = field(default_factory=LoraConfig)

    @property
    def is_lora(self) -> bool:
        """Whether the model is a frozen base with adapters."""
        return self.peft_scheme == "lora"


@dataclass
class ModelConfig(CheckedConfig):
    """One decoder-only Megatron model and how it is laid out over ranks.

    Keys without a default must be given. Null keys mean: ``num_query_groups`` as many as heads, ``kv_channels``
    ``hidden_size / num_attention_heads``, ``max_position_embeddings`` as ``encoder_seq_length``, ``vocab_size`` as many
    ids as the tokenizer has (before padding; a number given here has to be its own), ``global_batch_size`` the rows of
    one optimizer step (see ``nemo_magic.config``; a number given here has to agree). NeMo does not know
    ``qk_layernorm``, norms of queries and keys, nor ``rope_scaling_factor``, that of ``scale_positional_embedding``
    (``compat.nemo_model``).

    Of ``num_moe_experts``, each a gated MLP of ``moe_ffn_hidden_size`` (null: ``ffn_hidden_size``), a token takes the
    ``moe_router_topk`` likeliest. They are weighed by their probabilities among all experts
    (``moe_router_pre_softmax=true``), or among those chosen, so that the weights sum to 1. No token is dropped, and no
    loss balances the experts.
    """

    KEY: ClassVar[str] = "model"

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    # Architecture
    num_layers: int = MISSING
    hidden_size: int = MISSING
    ffn_hidden_size: int = MISSING
    num_attention_heads: int = MISSING
    num_query_groups: int | None = None
    kv_channels: int | None = None
    encoder_seq_length: int = MISSING
    max_position_embeddings: int | None = None
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = 128
    normalization: Annotated[str, OneOf("rmsnorm", "layernorm", "layernorm1p")] = "rmsnorm"
    layernorm_epsilon: NonNegativeFloat32 = 1e-5
    bias: bool = False
    qkv_bias: bool = False
    qk_layernorm: bool = False
    activation: Annotated[str, OneOf(*ACTIVATIONS)] = "fast-swiglu"
    position_embedding_type: Annotated[str, OneOf("rope", "learned_absolute", "none")] = "rope"
    rotary_percentage: Fraction = 1.0
    rotary_base: int = 10000
    rotary_interleaved: bool = False
    seq_len_interpolation_factor: PositiveFloat32 | None = None
    scale_positional_embedding: bool = False
    rope_scaling_factor: PositiveFloat32 = 8.0
    share_embeddings_and_output_weights: bool = False
    apply_query_key_layer_scaling: bool = False
    init_method_std: NonNegativeFloat32 = 0.02
    use_scaled_init_method: bool = True
    hidden_dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    ffn_dropout: Fraction = 0.0

    # A mixture of experts in place of every layer's MLP; none where num_moe_experts is null
    num_moe_experts: PositiveInt | None = None
    moe_ffn_hidden_size: PositiveInt | None = None
    moe_router_topk: PositiveInt = 2
    moe_router_pre_softmax: bool = False

    # Layout
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    sequence_parallel: bool = False
    micro_batch_size: int = 1
    global_batch_size: int | None = None

    # Precision and kernels
    megatron_amp_O2: bool = True
    transformer_engine: bool = True
    name: str = ""
    use_cpu_initialization: bool = False
    fp32_residual_connection: bool = False
    fp16_lm_cross_entropy: bool = False
    native_amp_init_scale: int = 4294967296
    native_amp_growth_interval: int = 1000
    hysteresis: int = 2
    persist_layer_norm: bool = False
    bias_activation_fusion: bool = False
    bias_dropout_add_fusion: bool = False
    masked_softmax_fusion: bool = False
    apply_rope_fusion: bool = False
    gradient_accumulation_fusion: bool = False
    use_flash_attention: bool = False
    grad_allreduce_chunk_size_mb: int = 125

    # Memory
    activations_checkpoint_granularity: Annotated[str, OneOf("selective", "full")] | None = None
    activations_checkpoint_method: Annotated[str, OneOf("uniform", "block")] | None = None
    activations_checkpoint_num_layers: int | None = None
    num_micro_batches_with_partial_activation_checkpoints: int | None = None
    activations_checkpoint_layers_per_pipeline: int | None = None

    peft: PeftConfig = field(default_factory=PeftConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def expert_ffn_size(self) -> int:
        """``moe_ffn_hidden_size``, or what it is where it is null."""
        return self.moe_ffn_hidden_size or self.ffn_hidden_size
