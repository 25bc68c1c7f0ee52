"""Tiny Hugging Face checkpoints with random weights, as transformers itself writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TOKENS, ROWS = 285, 301
"""Of the tokenizer, and of the embedding: larger than the tokenizer, and no multiple of anything."""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w1{% endif %}"
)
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "vocab_size": ROWS,
    "bos_token_id": 0,
    "eos_token_id": [1, 5],
    "initializer_range": 0.1,
}
CHECKPOINTS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama31": (LlamaForCausalLM, {"rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE, "rms_norm_eps": 1e-5}),
    "llama_tied": (LlamaForCausalLM, {"rope_theta": 500000.0, "tie_word_embeddings": True, "head_dim": 16}),
    "llama32": (
        LlamaForCausalLM,
        {"rope_theta": 500000.0, "rope_scaling": LLAMA31_ROPE | {"factor": 32.0}, "tie_word_embeddings": True},
    ),
    "mistral": (MistralForCausalLM, {"rope_theta": 1e6, "sliding_window": None, "rms_norm_eps": 1e-5, "head_dim": 16}),
    "qwen3": (Qwen3ForCausalLM, {"rope_theta": 1e6, "head_dim": 16}),
    "qwen": (Qwen2ForCausalLM, {"rope_theta": 1e6}),
    "qwen_tied": (Qwen2ForCausalLM, {"rope_theta": 1e6, "tie_word_embeddings": True}),
}
EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
MEGATRON_ONLY: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen3_moe": (Qwen3MoeForCausalLM, {"rope_theta": 1e6, "head_dim": 16} | EXPERTS),
    "qwen3_moe_tied": (
        Qwen3MoeForCausalLM,
        {"rope_theta": 1e6, "head_dim": 16, "tie_word_embeddings": True} | EXPERTS | {"norm_topk_prob": False},
    ),
}
"""The same of families that only ``backend=megatron`` has."""
CONFIGS: dict[type, type] = {
    LlamaForCausalLM: LlamaConfig,
    MistralForCausalLM: MistralConfig,
    Qwen2ForCausalLM: Qwen2Config,
    Qwen3ForCausalLM: Qwen3Config,
    Qwen3MoeForCausalLM: Qwen3MoeConfig,
}


def make(
    folder: Path, name: str = "qwen", dtype: torch.dtype = torch.float32, shard: str = "100KB", **own: Any
) -> Path:
    """Write the checkpoint ``name`` to ``folder/name``; ``own`` keys of its config.json differ."""
    kind, keys = (CHECKPOINTS | MEGATRON_ONLY)[name]
    config = CONFIGS[kind](**SHAPE | keys | own)
    torch.manual_seed(len(name))
    model = kind(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            # transformers starts biases at 0 and norms at 1, where a wrong place would not show.
            if "norm" in key or key.endswith(".bias"):
                value.copy_(torch.randn_like(value) * 0.3 + ("norm" in key))
    model.to(dtype).save_pretrained(folder / name, max_shard_size=shard)
    tokenizer().save_pretrained(folder / name)
    return folder / name


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0, w1, …, a chat template, and the special tokens."""
    words = ["<s>", "</s>", "<pad>", "<unk>", *(f"w{i}" for i in range(TOKENS - 5)), "<|turn|>"]
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def edit_config(folder: Path, **keys: Any) -> None:
    """Change keys of a config.json on disk; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every safetensors file in a folder."""
    from safetensors.torch import load_file

    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}
