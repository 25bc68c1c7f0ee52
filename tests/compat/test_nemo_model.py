"""What NeMo leaves out of a model, and what is put there. Gradients at TP2: tests/convert/test_convert_parity.py."""

from __future__ import annotations

import ast
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nemo_magic.compat.nemo_model import scale_frequencies

LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
}  # fmt: skip


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("size", [16, 64, 128])
def test_frequencies_are_scaled_as_transformers_scales_them(factor: float, size: int) -> None:
    config = LlamaConfig(
        hidden_size=size, num_attention_heads=1, rope_theta=500000.0, rope_scaling={**LLAMA3, "factor": factor}
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (500000.0 ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    ours = scale_frequencies(plain, factor)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)
    assert not torch.allclose(ours, plain, rtol=1e-2, atol=0)


def function(path: str, name: str) -> ast.FunctionDef:
    """A function of NeMo's, from its source: importing NeMo takes a process of its own."""
    source = Path(str(distribution("nemo_toolkit").locate_file(path))).read_text(encoding="utf-8")
    return next(one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.FunctionDef) and one.name == name)


def test_nemo_builds_no_norms_of_queries_and_keys_sums_no_gradients_of_them_and_has_one_rotary_factor() -> None:
    gpt = "nemo/collections/nlp/models/language_modeling/megatron_gpt_model.py"
    assert "qk_layernorm" not in ast.unparse(function(gpt, "get_specs"))
    assert "q_layernorm" not in ast.unparse(function(gpt, "_append_sequence_parallel_module_grads"))
    assert "sequence_parallel" in ast.unparse(function(gpt, "_append_sequence_parallel_module_grads"))
    scaling = function("nemo/collections/common/parts/utils.py", "apply_rope_scaling")
    assert [argument.arg for argument in scaling.args.args] == ["freqs"]
    assert "scale_factor = 8" in ast.unparse(scaling)
