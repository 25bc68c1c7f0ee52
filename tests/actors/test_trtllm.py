"""Both roles through TensorRT-LLM: NeMo-Aligner's wrapper and NeMo's exporter are real, what they call is torch.

Engines keep their own copy of the weights: a refit that is missing, or of the wrong actor, changes what is said.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_magic.actors.config import TRTLLM_MODEL_TYPES
from nemo_magic.config import ConfigError, compose
from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig
from tests import zygote
from tests.zygote import environment

HERE = Path(__file__).parent
# name: (TP, PP, what is measured there)
WORLDS = {"tp2": (2, 1, ["plain"]), "pp2": (1, 2, ["plain", "reshard"])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sandbox, and its tokenizer with one id more, so that two ranks can share them out."""
    folder = tmp_path_factory.mktemp("trtllm")
    prepare(SandboxConfig(folder=str(folder / "sandbox"), attack_rows=10, defender_rows=10))
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "sandbox" / "tokenizer"))
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    return folder


@pytest.fixture(scope="module")
def worlds(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Per world, what every rank found."""
    found = {}
    for name, (tp, pp, modes) in WORLDS.items():
        words = [str(folder), name, str(tp), str(pp), *modes]
        run = zygote.run(zygote.script(HERE / "trtllm_world.py", *words, ranks=2), timeout=300)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        for mode in modes:
            found[f"{name}-{mode}"] = json.loads((folder / f"{name}-{mode}.json").read_text())
    return found


@pytest.fixture(params=[f"{name}-{mode}" for name, (_, _, modes) in WORLDS.items() for mode in modes])
def ranks(request: pytest.FixtureRequest, worlds: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return worlds[request.param]


@pytest.mark.process
def test_an_engine_says_what_megatron_says_whoever_speaks_and_after_every_update(ranks: Any) -> None:
    for rank in ranks:
        for key in ("attacker", "defender", "updated", "read_again", "smaller", "attacker_again", "mended"):
            assert rank[key]["engine"] == rank[key]["native"], key
            assert rank[key]["engine"] == ranks[0][key]["engine"]
        assert rank["attacker"] != rank["defender"]
        assert rank["update_changed_what_is_said"]


@pytest.mark.process
def test_an_engine_holds_merged_adapters_of_one_role_at_a_time_and_the_base_is_bit_equal_after_it(ranks: Any) -> None:
    for rank in ranks:
        native, engine = rank["adapters"]["said"]
        assert engine == native == rank["adapters"]["again"]
        assert native[0] != native[1]
        assert rank["adapters"]["as_before"]


@pytest.mark.process
def test_there_is_one_engine_per_architecture_and_it_is_not_refitted_in_vain(ranks: Any) -> None:
    for rank in ranks:
        assert rank["one_build"] == 1
        assert rank["builds"] == 2
        assert rank["refits_of_unchanged_weights"] == 0
        assert "there can be one only" in rank["second"]


@pytest.mark.process
def test_weights_that_are_not_the_actors_are_refused(ranks: Any) -> None:
    for rank in ranks:
        assert "the defender is at weights version" in rank["stale"]
        assert "before load" in rank["unloaded"]
        assert "mlp.extra.weight" in rank["forgotten"]  # only one rank's engine wanted it


@pytest.mark.process
def test_memory_is_given_back_and_nothing_is_left_on_disk(ranks: Any) -> None:
    for rank in ranks:
        assert rank["released"]
        assert rank["closed"]
        assert rank["left_on_disk"] == []


@pytest.mark.process
def test_a_rows_sample_follows_its_own_seed_and_the_roles_own_temperature(ranks: Any) -> None:
    for rank in ranks:
        assert rank["sampled"] == ranks[0]["sampled"]
        assert rank["alone"] == rank["sampled"][5:6]
        assert rank["other_seed"] != rank["alone"][0]
        assert rank["sampled"] != rank["defender_native"]
        alike = sum(cold == best for cold, best in zip(rank["cold"], rank["defender_native"], strict=True))
        assert alike >= len(rank["cold"]) // 2


@pytest.mark.process
def test_a_response_ends_at_its_end_string_or_where_an_id_is_none(ranks: Any) -> None:
    for rank in ranks:
        for key in ("phrase", "word"):
            said = rank[key]
            assert said["finished"]
            assert said["ends"][0] not in said["text"]
            assert said["ids"] == rank["spoken"][: len(said["ids"])]
        assert len(rank["word"]["ids"]) == 2
        assert len(rank["phrase"]["ids"]) == 3
        whole = rank["invalid"]["native"]
        assert rank["invalid"]["sizes"] == [min(2, len(row)) for row in whole]
        assert rank["invalid"]["finished"] == [len(row) <= 2 for row in whole]
        assert rank["invalid"]["counted"] > 0
        assert "generation.trt_llm.max_input_len=36" in rank["too_long"]


@pytest.mark.process
def test_engines_turn_by_the_scaled_angles_of_llama_3_1(ranks: Any) -> None:
    for rank in ranks:
        assert rank["scaled"]["scaled"] < 1e-4
        assert rank["scaled"]["plain"] > 1e-3  # what the exporter would build by itself


@pytest.mark.process
def test_a_whole_game_is_played_through_the_engine(folder: Path) -> None:
    # Without an intent gate, which the attacks of an attacker with random weights would all fail: nobody would learn.
    overrides = [
        "trainer.devices=1", f"sandbox.folder={folder / 'sandbox'}", f"exp_manager.explicit_log_dir={folder / 'run'}",
        f"generation.trt_llm.engine_dir={folder / 'engines'}", "generation.engine=trt_llm",
        "generation.trt_llm.unload_engine_train=true", "generation.trt_llm.max_input_len=26",
        "generation.batch_size=32", "game=paper", "game.batch_size=8", "game.group_size=4",
        "game.max_steps=4", "game.schedule.freq=2", "game.val_check_interval=4",
        "game.num_val_samples=8", "game.crossplay.num_seeds=8", "game.strategy_sweep=null", "model.num_layers=2",
        "actors.attacker.restore_from_path=null", "actors.defender.restore_from_path=null",
        "actors.attacker.length_params.min_length=0", "actors.defender.length_params.min_length=0",
    ]  # fmt: skip
    command = [sys.executable, str(HERE / "trtllm_game.py"), "train", "-cn", "magic_sandbox", *overrides]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment())
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    learners = [step["learner"] for step in steps]
    assert learners == [None, "defender", "defender", "attacker", "attacker"]
    # A defender's phase needs the attacker's weights once, for all of its attacks; its own in every step.
    assert [step["generation/refits"] for step in steps[1:4]] == [2, 1, 2]
    for step in steps[1:]:
        assert step["train_optim/live_rows"] > 0
        assert step["generation/invalid_responses"] == 0
        assert 0 < step["timers/refit"] < step["timers/step"]
        assert "train_optim/mismatch" not in step  # the engine tells no log-probabilities
        assert abs(step["train_optim/neg_logprob_minus_entropy"]) < 0.5 < step["train_optim/entropy"]
    assert not list((folder / "engines").glob("*"))


# --- held to the real libraries


def source_of(module: str) -> ast.Module:
    """Without importing it: its package may not be importable here."""
    package, *parts = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]).joinpath(*parts).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def function(tree: ast.AST, *names: str) -> ast.FunctionDef:
    node = tree
    for name in names:
        found = [n for n in ast.walk(node) if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name]
        assert found, f"{'.'.join(names)} is not there any more"
        node = found[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def parameters(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in node.args.args + node.args.kwonlyargs if argument.arg != "self"]


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    def called(node: ast.Call) -> str:
        return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")

    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) == name]


def keywords(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg}


OURS = ast.parse((HERE.parents[1] / "nemo_magic" / "actors" / "trtllm.py").read_text(encoding="utf-8"))


def test_every_keyword_we_give_the_wrapper_is_one_of_its() -> None:
    wrapper = source_of("nemo_aligner.utils.trt_llm")
    (made,) = calls(OURS, "GPTGenerateTRTLLM")
    assert keywords(made) == set(parameters(function(wrapper, "GPTGenerateTRTLLM", "__init__")))
    assert parameters(function(wrapper, "GPTGenerateTRTLLM", "refit")) == ["model"]
    assert all(len(call.args) == 1 for call in calls(OURS, "refit"))
    text = ast.unparse(wrapper)
    for attribute in ("trt_llm_exporter = TensorRTLLM", "sampling_config = tensorrt_llm.runtime.SamplingConfig"):
        assert f"self.{attribute}(" in text


def test_the_decoder_is_asked_as_the_wrapper_asks_it() -> None:
    (theirs,) = calls(function(source_of("nemo_aligner.utils.trt_llm"), "GPTGenerateTRTLLM", "_generate"), "generate")
    ours = [call for call in calls(OURS, "generate") if call.keywords]
    assert [keywords(call) for call in ours] == [keywords(theirs)]
    set_by_wrapper = ast.unparse(source_of("nemo_aligner.utils.trt_llm"))
    for call in calls(OURS, "update"):
        for keyword in keywords(call):
            assert f"{keyword}=" in set_by_wrapper, keyword


def test_what_we_use_of_the_exporter_and_of_nemo_aligner_is_there() -> None:
    exporter = source_of("nemo.export.tensorrt_llm")
    assert parameters(function(exporter, "TensorRTLLM", "unload_engine")) == []
    assert parameters(function(exporter, "TensorRTLLM", "refit"))[:2] == ["model", "model_config"]
    run = source_of("nemo.export.trt_llm.tensorrt_llm_run")
    assert "Weights dict did not contain weights" in ast.unparse(function(run, "refit"))
    assert "tensorrt_llm_worker_context = TensorrtLLMWorkerContext()" in ast.unparse(run)
    distributed = source_of("nemo_aligner.utils.distributed")
    assert parameters(function(distributed, "broadcast_2d_tensor_within_mp")) == ["tensor", "dtype"]
    assert "from_last" in parameters(function(distributed, "broadcast_tensor_within_pp"))
    assert parameters(function(source_of("nemo_aligner.utils.parallel_state"), "trt_llm_reshard_region")) == []
    function(source_of("megatron.core.export.trtllm.trtllm_helper"), "TRTLLMHelper", "_get_trtllm_config")
    types = source_of("megatron.core.export.model_type")
    (made,) = calls(types, "Enum")
    assert set(TRTLLM_MODEL_TYPES) == set(ast.literal_eval(made.args[1]))


# --- configuration


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.qkv_bias=true"], "model.qkv_bias=true, as Qwen has"),
        (["model.qk_layernorm=true"], "model.qk_layernorm=true, as Qwen3 has"),
        (["grpo.tis_clip=2"], "grpo.tis_clip=2"),
        (["actors.attacker.length_params.min_length=1"], "min_length=1 is not kept to by TensorRT-LLM"),
        (["generation.trt_llm.max_input_len=9000"], "lower generation.trt_llm.max_input_len"),
        (["model.bias=true"], "model.bias=true"),
        (["generation.trt_llm.model_type=qwen"], "model_type='qwen' must be one of"),
    ],
)
def test_what_tensorrt_llm_has_not_is_refused(overrides: list[str], said: str) -> None:
    given = [
        "data.train_files=[s.jsonl]", "judge.urls=[http://j:1]",
        "actors.attacker.restore_from_path=a", "actors.defender.restore_from_path=d",
    ]  # fmt: skip
    compose("magic_8b", given)
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        compose("magic_8b", [*given, *overrides])


def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generation\.engine=trt_llm needs a GPU"):
        compose("magic_sandbox", ["generation.engine=trt_llm"])
