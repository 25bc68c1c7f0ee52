"""What of ``config.json`` becomes which key of conf/model, and what is refused, by key and value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from nemo_magic.hf_format.errors import ConvertError
from nemo_magic.hf_format.families import config_of, difference, model_of, model_yaml, padded_rows, vocabulary_multiple
from nemo_magic.model_config import ModelConfig
from tests.convert.tiny_hf import EXPERTS, LLAMA31_ROPE, SHAPE
from tests.presets import model_preset

LLAMA31: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA31_ROPE,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
QWEN25: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
LLAMA32 = LLAMA31 | {"rope_scaling": LLAMA31_ROPE | {"factor": 32.0}, "tie_word_embeddings": True}
TOKENS = {"llama": 128256, "qwen2": 151665, "qwen3": 151669, "mistral": 32768}


def shape(layers: int, hidden: int, ffn: int, heads: int, groups: int) -> dict[str, int]:
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return dict(zip(keys, (layers, hidden, ffn, heads, groups), strict=True))


PUBLISHED = {
    "llama31_8b": LLAMA31 | shape(32, 4096, 14336, 32, 8),
    "llama31_70b": LLAMA31 | shape(80, 8192, 28672, 64, 8),
    "llama32_1b": LLAMA32 | shape(16, 2048, 8192, 32, 8) | {"head_dim": 64},
    "llama32_3b": LLAMA32 | shape(28, 3072, 8192, 24, 8) | {"head_dim": 128},
    "llama33_70b": LLAMA31 | shape(80, 8192, 28672, 64, 8) | {"head_dim": 128},
    "mistral_7b": MISTRAL | shape(32, 4096, 14336, 32, 8),
    "qwen3_8b": QWEN3 | shape(36, 4096, 12288, 32, 8),
    "qwen3_14b": QWEN3 | shape(40, 5120, 17408, 40, 8),
    "qwen3_32b": QWEN3 | shape(64, 5120, 25600, 64, 8),
    "qwen25_7b": QWEN25 | shape(28, 3584, 18944, 28, 4),
    "qwen25_14b": QWEN25 | shape(48, 5120, 13824, 40, 8),
    "qwen25_72b": QWEN25 | shape(80, 8192, 29568, 64, 8),
}
TINY = {"model_type": "llama"} | SHAPE
MOE = {"model_type": "qwen3_moe", "head_dim": 8} | EXPERTS


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_presets_are_what_the_published_configurations_become(name: str) -> None:
    config = PUBLISHED[name]
    made = model_yaml(model_of(config, TOKENS[config["model_type"]]))
    preset = model_preset(name)
    preset |= {"layernorm_epsilon": float(preset["layernorm_epsilon"]), "qkv_bias": preset.get("qkv_bias", False)}
    preset = {"scale_positional_embedding": False, "qk_layernorm": False, "rope_scaling_factor": 8.0} | preset
    assert {key: preset[key] for key in made if key != "tokenizer"} == {
        k: v for k, v in made.items() if k != "tokenizer"
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_presets_have_the_rows_of_the_published_embedding_and_divide_at_tp8(name: str) -> None:
    config = PUBLISHED[name]
    tokens = TOKENS[config["model_type"]]
    model = model_of(config, tokens)
    assert padded_rows(model, tokens) == config["vocab_size"]
    assert model.make_vocab_size_divisible_by % 8 == 0


@pytest.mark.parametrize(
    ("tokens", "rows", "multiple", "padded"),
    [
        (128256, 128256, 128, 128256),
        (151665, 152064, 512, 152064),
        (151665, 151936, 151936, 151936),
        (90, 301, 384, 384),
    ],
)
def test_the_vocabulary_is_padded_to_the_published_rows_or_just_beyond(
    tokens: int, rows: int, multiple: int, padded: int
) -> None:
    assert vocabulary_multiple(tokens, rows) == multiple
    assert -(-tokens // multiple) * multiple == padded


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"model_type": "gemma2"},
            "model_type='gemma2' is not known; known are: llama, mistral, qwen2, qwen3, qwen3_moe",
        ),
        (
            {"model_type": "gemma3_text"},
            "model_type='gemma3_text' cannot be represented: Megatron-core 0.16 has no norms",
        ),
        (
            {"model_type": "gpt_oss"},
            "model_type='gpt_oss' cannot be represented: its experts have biases, which Megatron",
        ),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' cannot be represented, only 'silu'"),
        ({"attention_bias": True}, "attention_bias=True cannot be represented, only False"),
        ({"mlp_bias": True}, "mlp_bias=True cannot be represented, only False"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True cannot be represented"),
        ({"model_type": "qwen2", "use_mrope": True}, "use_mrope=True cannot be represented"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only 'full_attention' can be represented"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 cannot be represented, only 1.0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} cannot be represented, only None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "has to be ['LlamaForCausalLM']"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type='yarn' is not known; known are: "),
        (
            {"rope_scaling": LLAMA31_ROPE | {"high_freq_factor": 2.0}},
            "rope_scaling.high_freq_factor=2.0 is not 4, the on",
        ),
        ({"rope_scaling": LLAMA31_ROPE | {"factor": None}}, "rope_scaling.factor=None has to be a positive number"),
        (
            {"model_type": "mistral", "sliding_window": 4096},
            "sliding_window=4096 cannot be represented, only None: attention here is over the whole sequence",
        ),
        ({"model_type": "mistral"}, "sliding_window is missing"),
        ({"model_type": "qwen3"}, "head_dim is missing"),
        ({"model_type": "qwen3", "head_dim": 8, "attention_bias": True}, "attention_bias=True cannot be represented"),
        (
            {"model_type": "qwen3_moe", "head_dim": 8},
            "num_experts, num_experts_per_tok, moe_intermediate_size, norm_to",
        ),
        (
            MOE | {"decoder_sparse_step": 2},
            "decoder_sparse_step=2 cannot be represented, only 1: every layer has experts",
        ),
        (MOE | {"mlp_only_layers": [0]}, "mlp_only_layers=[0] cannot be represented, only []: every layer has experts"),
        (MOE | {"num_experts_per_tok": 7}, "num_experts_per_tok=7 is more than num_experts=6"),
        (
            MOE | {"num_experts_per_tok": 1},
            "norm_topk_prob=True with num_experts_per_tok=1: the router would decide no",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_scaling.low_freq_factor=None is not 1"),
        ({"rope_theta": 10000.5}, "rope_theta=10000.5 is not a whole number"),
        ({"num_key_value_heads": 3}, "num_attention_heads=8 is not divisible by num_key_value_heads=3"),
        ({"hidden_size": 60}, "hidden_size=60 is not divisible by num_attention_heads=8"),
    ],
)
def test_what_megatron_cannot_represent_is_refused_by_key_and_value(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConvertError) as error:
        model_of(TINY | keys)
    assert said in str(error.value)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConvertError) as error:
        model_of(TINY | {"hidden_act": "gelu", "mlp_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "max_position_embeddings"])
def test_a_size_that_is_missing_is_named_and_not_guessed(key: str) -> None:
    with pytest.raises(ConvertError, match=f"{key} is missing"):
        model_of({k: v for k, v in TINY.items() if k != key})
    with pytest.raises(ConvertError, match="num_key_value_heads is missing"):
        model_of({k: v for k, v in TINY.items() if k != "num_key_value_heads"} | {"model_type": "qwen2"})


def test_rotary_positions_are_read_in_the_newer_notation_too() -> None:
    newer = {"rope_parameters": LLAMA31_ROPE | {"rope_theta": 500000.0}}
    model = model_of(TINY | newer)
    assert (model.rotary_base, model.scale_positional_embedding, model.rope_scaling_factor) == (500000, True, 8)
    other = model_of(TINY | {"rope_parameters": LLAMA31_ROPE | {"rope_theta": 500000.0, "factor": 32.0}})
    assert difference(model, other) == ["rope_scaling_factor=8.0, not 32.0"]
    with pytest.raises(ConvertError, match="rope_scaling.low_freq_factor=2.0"):
        model_of(TINY | {"rope_parameters": LLAMA31_ROPE | {"low_freq_factor": 2.0}})


def test_a_tokenizer_that_is_larger_than_the_embedding_is_another_models() -> None:
    with pytest.raises(ConvertError, match="vocab_size=301, but the tokenizer beside it has 302 tokens"):
        model_of(TINY, tokens=302)


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig])
def test_a_configuration_made_from_a_model_describes_that_model(kind: Any) -> None:
    scaling = {"rope_scaling": LLAMA31_ROPE | {"factor": 32.0}} if kind is LlamaConfig else {}
    published = kind(**SHAPE, rope_theta=500000.0, tie_word_embeddings=True, **scaling).to_dict()
    model = model_of(published)
    made = config_of(model, published["vocab_size"], {"eos_token_id": 7})
    assert difference(model, model_of(made)) == []
    assert (made["eos_token_id"], made["vocab_size"], made["model_type"]) == (7, 301, published["model_type"])
    assert {key: published[key] for key in SHAPE.keys() & made.keys() - {"eos_token_id"}}.items() <= made.items()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "learned_absolute"),
        ("normalization", "layernorm"),
        ("bias", True),
        ("activation", "gelu"),
        ("rotary_percentage", 0.5),
        ("rotary_interleaved", True),
        ("seq_len_interpolation_factor", 2.0),
        ("apply_query_key_layer_scaling", True),
    ],
)
def test_a_model_that_hugging_face_has_no_name_for_is_refused(key: str, value: Any) -> None:
    shapes = {
        "num_layers": 2,
        "hidden_size": 8,
        "ffn_hidden_size": 16,
        "num_attention_heads": 2,
        "encoder_seq_length": 8,
    }
    with pytest.raises(
        ConvertError, match=f"model.{key}={value!r} has no place in LlamaForCausalLM or MistralForCausalLM or Qwen2"
    ):
        config_of(ModelConfig(**shapes | {key: value}), 10, {})


def test_a_model_with_biases_and_norms_of_queries_and_keys_has_no_architecture() -> None:
    model = model_of(TINY | {"model_type": "qwen3", "head_dim": 8})
    assert model.qk_layernorm
    with pytest.raises(ConvertError, match="qkv_bias=True and model.qk_layernorm=True have no place in one"):
        config_of(replace(model, qkv_bias=True), 10, {})


def test_two_models_differ_by_name_and_value_and_not_by_spelling() -> None:
    model = model_of(TINY)
    assert difference(model, model_of(TINY | {"rms_norm_eps": 1e-5})) == ["layernorm_epsilon=1e-06, not 1e-05"]
    assert difference(model, model_of(TINY | {"head_dim": 8})) == []


def test_experts_are_part_of_what_a_model_is() -> None:
    model = model_of(TINY | MOE)
    assert (model.num_moe_experts, model.moe_ffn_hidden_size, model.moe_router_topk) == (6, 48, 2)
    assert not model.moe_router_pre_softmax
    other = model_of(TINY | MOE | {"num_experts": 8, "norm_topk_prob": False})
    assert difference(model, other) == ["num_moe_experts=6, not 8", "moe_router_pre_softmax=False, not True"]
    assert "num_moe_experts=6, not None" in difference(model, model_of(TINY | {"model_type": "qwen3", "head_dim": 8}))
    with pytest.raises(ConvertError, match="num_moe_experts=6 has no place in LlamaForCausalLM"):
        config_of(replace(model, qk_layernorm=False), 10, {})
