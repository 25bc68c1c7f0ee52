"""``config.json`` of Hugging Face as keys of ``conf/model``, and back. Imports neither torch nor transformers.

A model that this stack's Megatron cannot represent is refused by key and value: a checkpoint that converts computes
what it computed before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.model_config import ModelConfig, TokenizerConfig

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""``model_type`` → architecture. Qwen2.5 is ``qwen2``."""

_WITHOUT_LAYERS = {
    "gemma3_text": (
        "Megatron-core 0.16 has no norms after attention and MLP, no second rotary base for the layers with a sliding "
        "window, no scaled embedding, and without transformer_engine no RMSNorm by 1 + weight"
    ),
    "gemma3": "it reads pictures; of Gemma3ForCausalLM, the part that reads text, Megatron-core 0.16 lacks layers too",
    "gpt_oss": (
        "its experts have biases, which Megatron-core 0.16 does not cut over tensor-parallel ranks, and its published "
        "weights are MXFP4"
    ),
}
"""``model_type`` of a family that is known and cannot be represented → why."""

# Of NeMo's scaling (scale_positional_embedding) only the factor is a number: 8 of Llama-3.1 and 3.3, 32 of 3.2.
_LLAMA3_ROPE = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}

# Key → (the one value that can be represented, what another would mean).
_FIXED: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the gated MLP here is SwiGLU"),
    "attention_bias": (False, "Megatron has no bias on queries, keys, values and output alone"),
    "mlp_bias": (False, "Megatron has no bias in the MLP alone"),
    "use_sliding_window": (False, "attention here is over the whole sequence"),
    "use_mrope": (False, "positions here are of text only"),
    "partial_rotary_factor": (1.0, "the whole of a head is rotated"),
    "decoder_sparse_step": (1, "every layer has experts, or none"),
    "mlp_only_layers": ([], "every layer has experts, or none"),
    "quantization_config": (None, "give the unquantized checkpoint"),
}
_SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_ASSUMED = {"llama": (), "mistral": ("num_key_value_heads", "sliding_window"), "qwen2": ("num_key_value_heads",),
            "qwen3": ("num_key_value_heads", "head_dim"),
            "qwen3_moe": ("num_key_value_heads", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
                          "norm_topk_prob")}  # fmt: skip
"""Keys of a family that transformers would assume where they are missing."""
_LONGEST = 8192
"""``encoder_seq_length`` of a converted model is at most this, as in conf/model; a run sets its own."""

MODEL = "model.yaml"
"""The file of a converted folder with the keys of its model."""

EXPERTS = ("num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_router_pre_softmax")
"""Keys of a mixture of experts."""

# Keys that have to agree for the weights of one model to be weights of another.
ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "normalization", "layernorm_epsilon", "bias", "qkv_bias", "qk_layernorm", "activation", "position_embedding_type",
    "rotary_percentage", "rotary_base", "rotary_interleaved", "scale_positional_embedding", "rope_scaling_factor",
    "seq_len_interpolation_factor", "share_embeddings_and_output_weights", *EXPERTS,
)  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConvertError when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(f"{path}: no such file") from None
    except ValueError as error:
        raise ConvertError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def model_of(config: Mapping[str, Any], tokens: int | None = None, tokenizer: str | None = None) -> ModelConfig:
    """The Megatron model that computes what ``config`` (a ``config.json``) describes.

    Args:
        tokens: size of the tokenizer, which with ``make_vocab_size_divisible_by`` decides how many rows the embedding
            has; by default that of the vocabulary in ``config``.
        tokenizer: folder or name for ``model.tokenizer.type``.

    Raises:
        ConvertError: for what Megatron cannot represent, with one line for every key.
    """
    problems = _unsupported(config)
    if problems:
        raise ConvertError("\n".join(f"config.json: {line}" for line in problems))
    rope = _rope(config)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    positions = config["max_position_embeddings"]
    scaled = rope["rope_type"] == "llama3"
    experts = {}
    if config["model_type"] == "qwen3_moe":
        experts = {
            "num_moe_experts": config["num_experts"],
            "moe_ffn_hidden_size": config["moe_intermediate_size"],
            "moe_router_topk": config["num_experts_per_tok"],
            "moe_router_pre_softmax": not config["norm_topk_prob"],
        }
    return ModelConfig(
        tokenizer=TokenizerConfig(library="huggingface", type=tokenizer),
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden,
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=head_dim if head_dim * heads != hidden else None,
        max_position_embeddings=positions,
        encoder_seq_length=min(positions, _LONGEST),
        vocab_size=tokens,
        make_vocab_size_divisible_by=vocabulary_multiple(tokens or config["vocab_size"], config["vocab_size"]),
        normalization="rmsnorm",
        layernorm_epsilon=config.get("rms_norm_eps", 1e-6),
        bias=False,
        qkv_bias=config["model_type"] == "qwen2",
        qk_layernorm=config["model_type"] in ("qwen3", "qwen3_moe"),
        activation="fast-swiglu",
        position_embedding_type="rope",
        rotary_base=int(rope["rope_theta"]),
        scale_positional_embedding=scaled,
        rope_scaling_factor=rope["factor"] if scaled else ModelConfig.rope_scaling_factor,
        share_embeddings_and_output_weights=config.get("tie_word_embeddings", False),
        init_method_std=config.get("initializer_range", 0.02),
        attention_dropout=config.get("attention_dropout", 0.0),
        **experts,
    )


def vocabulary_multiple(tokens: int, rows: int) -> int:
    """The multiple of 128 that, when ``tokens`` are padded to it, leaves the least beyond ``rows``.

    NeMo sizes the embedding by the tokenizer, and published embeddings are often larger: Qwen2.5's 151,665 tokens have
    152,064 rows, which padding to 512 gives. 128 keeps it divisible at every usual TP. Of equally good ones the
    smallest.

    Raises:
        ConvertError: when the tokenizer is larger than the embedding.
    """
    if tokens > rows:
        raise ConvertError(
            f"config.json: vocab_size={rows}, but the tokenizer beside it has {tokens} tokens: it is another model's"
        )
    sizes = ((-(-tokens // m) * m, m) for m in range(128, rows + 128, 128))
    return min((size, m) for size, m in sizes if size >= rows)[1]


def padded_rows(model: ModelConfig, tokens: int) -> int:
    """Rows of the embedding that NeMo builds for a tokenizer of ``tokens``."""
    multiple = model.make_vocab_size_divisible_by
    return -(-tokens // multiple) * multiple


def difference(model: ModelConfig, other: ModelConfig) -> list[str]:
    """Keys of the architecture in which the two differ, as ``key=one, not other``."""
    one, two = _with_defaults(model), _with_defaults(other)
    return [f"{key}={one[key]!r}, not {two[key]!r}" for key in ARCHITECTURE if one[key] != two[key]]


def config_of(model: ModelConfig, rows: int, special: Mapping[str, int | None]) -> dict[str, Any]:
    """A ``config.json`` for a model that never had one.

    Args:
        rows: of its embedding.
        special: ``bos_token_id``, ``eos_token_id``, ``pad_token_id`` of its tokenizer.

    Raises:
        ConvertError: when no architecture of Hugging Face is known that computes the same.
    """
    representable = {
        "normalization": ("rmsnorm",),
        "bias": (False,),
        "activation": ("fast-swiglu", "swiglu"),
        "position_embedding_type": ("rope",),
        "rotary_percentage": (1.0,),
        "rotary_interleaved": (False,),
        "seq_len_interpolation_factor": (None,),
        "apply_query_key_layer_scaling": (False,),
    }
    wrong = [
        f"model.{key}={getattr(model, key)!r} has no place in {' or '.join(FAMILIES.values())}: "
        f"it would have to be {' or '.join(map(repr, values))}"
        for key, values in representable.items()
        if getattr(model, key) not in values
    ]
    if wrong:
        raise ConvertError("\n".join(wrong))
    if model.qkv_bias and model.qk_layernorm:
        raise ConvertError("model.qkv_bias=True and model.qk_layernorm=True have no place in one architecture")
    kind = "qwen2" if model.qkv_bias else "qwen3" if model.qk_layernorm else "llama"
    if model.num_moe_experts is not None:
        if kind != "qwen3":
            raise ConvertError(
                f"model.num_moe_experts={model.num_moe_experts} has no place in {FAMILIES[kind]}: only "
                "model.qk_layernorm=True, as Qwen3 has it, has an architecture with experts"
            )
        kind = "qwen3_moe"
    scaling = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **_LLAMA3_ROPE}
    head_dim = model.kv_channels or model.hidden_size // model.num_attention_heads
    config: dict[str, Any] = {
        "architectures": [FAMILIES[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups or model.num_attention_heads,
        "head_dim": head_dim,
        "max_position_embeddings": model.max_position_embeddings or model.encoder_seq_length,
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_theta": float(model.rotary_base),
        "rope_scaling": scaling if model.scale_positional_embedding else None,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "initializer_range": model.init_method_std,
        "vocab_size": rows,
        "use_cache": True,
    }
    if kind == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    if kind == "qwen3_moe":
        config |= {
            "num_experts": model.num_moe_experts,
            "moe_intermediate_size": model.expert_ffn_size,
            "num_experts_per_tok": model.moe_router_topk,
            "norm_topk_prob": not model.moe_router_pre_softmax,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config | dict(special)


def model_yaml(model: ModelConfig) -> dict[str, Any]:
    """The keys of ``model`` that a file of conf/model needs; the rest is layout, optimizer and defaults."""
    keys = (
        "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
        "max_position_embeddings", "encoder_seq_length", "vocab_size", "make_vocab_size_divisible_by", "normalization",
        "layernorm_epsilon", "activation", "position_embedding_type", "rotary_base", "scale_positional_embedding",
        "rope_scaling_factor", "bias", "qkv_bias", "qk_layernorm", "share_embeddings_and_output_weights", *EXPERTS,
    )  # fmt: skip
    tokenizer = {"library": model.tokenizer.library, "type": model.tokenizer.type}
    unused: tuple[str, ...] = () if model.scale_positional_embedding else ("rope_scaling_factor",)
    unused += EXPERTS if model.num_moe_experts is None else ()
    return {"tokenizer": tokenizer} | {
        key: value for key in keys if key not in unused and (value := getattr(model, key)) is not None
    }


def opens_in_nemo(model: ModelConfig) -> bool:
    """Whether NeMo by itself builds this model, and not one without what ``compat.nemo_model`` adds."""
    factor = model.rope_scaling_factor if model.scale_positional_embedding else ModelConfig.rope_scaling_factor
    return not model.qk_layernorm and model.num_moe_experts is None and factor == ModelConfig.rope_scaling_factor


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """One line for every key that Megatron cannot represent."""
    kind = config.get("model_type")
    if kind in _WITHOUT_LAYERS:
        return [f"model_type={kind!r} cannot be represented: {_WITHOUT_LAYERS[kind]}"]
    if kind not in FAMILIES:
        return [f"model_type={kind!r} is not known; known are: {', '.join(FAMILIES)}"]
    missing = [key for key in (*_SHAPE, "max_position_embeddings") if key not in config]
    # What transformers would assume is another number for every family.
    missing += [key for key in _ASSUMED[kind] if key not in config]
    if missing:
        return [f"{', '.join(missing)} is missing"]
    problems = []
    architectures = config.get("architectures") or [FAMILIES[kind]]
    if architectures != [FAMILIES[kind]]:
        problems.append(f"architectures={architectures} has to be [{FAMILIES[kind]!r}]: a model that generates text")
    for key, (value, meaning) in _FIXED.items():
        if config.get(key, value) != value:
            problems.append(f"{key}={config[key]!r} cannot be represented, only {value!r}: {meaning}")
    kinds = set(config.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        problems.append(f"layer_types has {sorted(kinds)}, only 'full_attention' can be represented")
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % groups:
        problems.append(f"num_attention_heads={heads} is not divisible by num_key_value_heads={groups}")
    if not config.get("head_dim") and config["hidden_size"] % heads:
        problems.append(f"hidden_size={config['hidden_size']} is not divisible by num_attention_heads={heads}")
    window = config.get("sliding_window")
    if kind == "mistral" and window is not None and window < config["max_position_embeddings"]:
        problems.append(f"sliding_window={window} cannot be represented, only None: attention here is over the whole "
                        "sequence")  # fmt: skip
    if kind == "qwen3_moe":
        topk, experts = config["num_experts_per_tok"], config["num_experts"]
        if topk > experts:
            problems.append(f"num_experts_per_tok={topk} is more than num_experts={experts}")
        if topk == 1 and config["norm_topk_prob"]:
            problems.append(
                "norm_topk_prob=True with num_experts_per_tok=1: the router would decide nothing to learn from"
            )
    rope = _rope(config)
    if rope["rope_theta"] != int(rope["rope_theta"]):
        problems.append(f"rope_theta={rope['rope_theta']} is not a whole number, as model.rotary_base is")
    if rope["rope_type"] == "llama3":
        wrong = {key: rope.get(key) for key, value in _LLAMA3_ROPE.items() if rope.get(key) != value}
        problems += [
            f"rope_scaling.{key}={value!r} is not {_LLAMA3_ROPE[key]}, the only value NeMo's "
            "scale_positional_embedding applies (Llama-3's)"
            for key, value in wrong.items()
        ]
        if not isinstance(factor := rope.get("factor"), int | float) or factor <= 0:
            problems.append(f"rope_scaling.factor={factor!r} has to be a positive number")
    elif rope["rope_type"] != "default":
        problems.append(f"rope_scaling.rope_type={rope['rope_type']!r} is not known; known are: default, llama3")
    return problems


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions as (``rope_theta``, ``rope_type``, its factors), in either of transformers' notations."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type", rope.pop("type", None)) or "default"
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return rope


def _with_defaults(model: ModelConfig) -> dict[str, Any]:
    """The keys of ``model``, those that derive from others filled in."""
    keys = dataclasses.asdict(model)
    heads = model.num_attention_heads
    keys["num_query_groups"] = model.num_query_groups or heads
    keys["kv_channels"] = model.kv_channels or model.hidden_size // heads
    keys["activation"] = model.activation.removeprefix("fast-")
    keys["rope_scaling_factor"] = model.rope_scaling_factor if model.scale_positional_embedding else None
    keys["moe_ffn_hidden_size"] = model.expert_ffn_size
    if model.num_moe_experts is None:
        keys |= dict.fromkeys(EXPERTS)
    return keys
