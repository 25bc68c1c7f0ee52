"""A small published model on CPU cores is one step: no key has to be set for optimizer, layers, lengths or batches."""

import pytest
import yaml

from nemo_magic.config import compose
from nemo_magic.game.episode import Role

NEEDED = (
    "data.train_files=[seeds.jsonl]",
    "judge.urls=[http://127.0.0.1:1]",
    "actors.attacker.restore_from_path=weights",
    "actors.defender.restore_from_path=weights",
)
# As `nemo-magic convert hf-to-nemo` writes it: dimensions and nothing of how it is trained.
CONVERTED = {
    "tokenizer": {"library": "huggingface", "type": "somewhere"},
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "max_position_embeddings": 2048,
    "encoder_seq_length": 2048,
    "vocab_size": 512,
    "make_vocab_size_divisible_by": 128,
    "normalization": "rmsnorm",
    "layernorm_epsilon": 1e-5,
    "activation": "fast-swiglu",
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "bias": False,
    "qkv_bias": False,
    "share_embeddings_and_output_weights": True,
}


@pytest.mark.parametrize("model", ["smollm2_135m", "small"])
def test_a_small_model_on_cpu_cores_is_one_step(tmp_path, model):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "small.yaml").write_text(yaml.safe_dump(CONVERTED))
    cfg = compose("magic_small", [f"model={model}", *NEEDED], str(tmp_path), "train")
    assert cfg.trainer.accelerator == "cpu"
    assert cfg.model.optim.name == "cpu_fused_adam"
    assert not cfg.model.transformer_engine
    assert not cfg.model.megatron_amp_O2
    for role in Role:
        lengths = cfg.actors.of(role).length_params
        assert lengths.max_length + lengths.max_prompt_length <= cfg.model.encoder_seq_length


@pytest.mark.parametrize("model", ["qwen25_7b", "llama31_8b"])
def test_the_cpu_takes_the_optimizer_and_the_layers_that_exist_there(model):
    cfg = compose(
        "magic", [f"model={model}", "cluster=cpu", "model.tensor_model_parallel_size=1", *NEEDED], command="train"
    )
    assert (cfg.model.optim.name, cfg.model.transformer_engine) == ("cpu_fused_adam", False)
