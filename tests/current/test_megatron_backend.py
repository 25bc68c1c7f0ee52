"""The backend megatron beside the default one, each in its own environment: the same numbers, and the same files."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from nemo_magic.report.records import StepRecord, read_records
from nemo_magic.runtime.checkpoint_paths import FOLDER
from tests.current import lanes
from tests.current.lanes import BACKENDS
from tests.training.program import SMALL

# A test may be the first to play two games, and to warm up for them.
pytestmark = [pytest.mark.process, pytest.mark.current, pytest.mark.timeout(1800)]

LAYOUTS = {
    "tp1": ["trainer.devices=1"],
    "tp2": ["trainer.devices=2", "model.tensor_model_parallel_size=2"],
    "pp2": ["trainer.devices=2", "model.pipeline_model_parallel_size=2"],
}
ARCHITECTURES = {
    "gpt": [
        "model.normalization=layernorm", "model.bias=true", "model.activation=gelu",
        "model.position_embedding_type=learned_absolute", "model.share_embeddings_and_output_weights=true",
    ],
    "qwen3": [
        "model.qk_layernorm=true", "model.num_query_groups=2", "model.kv_channels=32", "model.rotary_base=1000000",
        "model.share_embeddings_and_output_weights=true",
    ],
    "llama32": [
        "model.num_query_groups=2", "model.scale_positional_embedding=true", "model.rope_scaling_factor=32",
        "model.qkv_bias=true",
    ],
}  # fmt: skip
LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=8", "model.optim.lr=3e-3"]
SPLIT = "model.sequence_parallel=true"
OTHER = {"nemo_aligner": "megatron", "megatron": "nemo_aligner"}
STEPS = 10
WHAT_SPEED_IS = ("timers/", "memory/", "throughput/", "judge")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sandbox, and both roles warmed up by the new lane on two data-parallel ranks."""
    home = tmp_path_factory.mktemp("current")
    small = [f"sandbox.folder={home / 'sandbox'}", *SMALL]
    lanes.run("megatron", "sandbox", "-cn", "magic_sandbox", "backend=megatron", *small)
    for role in ("attacker", "defender"):
        lanes.run(
            "megatron", "sft", "-cn", f"sft_sandbox_{role}", "backend=megatron", *small, "sft.max_steps=40",
            "sft.batch_size=64", f"exp_manager.explicit_log_dir={home / role}",
        )  # fmt: skip
    return home


def game(home: Path, backend: str, folder: Path, layout: str) -> list[str]:
    return [
        "train", "-cn", "magic_sandbox", f"backend={backend}", f"name={folder.name}",
        f"exp_manager.explicit_log_dir={folder}", f"sandbox.folder={home / 'sandbox'}", *SMALL, *LAYOUTS[layout],
        f"actors.attacker.restore_from_path={home / 'attacker' / 'weights'}",
        f"actors.defender.restore_from_path={home / 'defender' / 'weights'}",
        f"game.max_steps={STEPS}", "game.schedule.freq=3", "game.batch_size=8", "game.val_check_interval=5",
        "game.num_val_samples=8", "game.crossplay.enabled=false", "game.strategy_sweep=null", "grpo.kl_beta=0.01",
        "grpo.minibatches=2", "exp_manager.checkpoint_callback_params.every_n_train_steps=5",
        "exp_manager.checkpoint_callback_params.keep_last=10", "exp_manager.create_tensorboard_logger=false",
        "exp_manager.create_report=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def played(home: Path, request: pytest.FixtureRequest) -> Any:
    """(backend, layout) → the folder of the game there; it is played once."""
    done: dict[tuple[str, str], Path] = {}

    def folder_of(backend: str, layout: str) -> Path:
        if (backend, layout) not in done:
            folder = home / f"{layout}_{backend}"
            lanes.run(backend, *game(home, backend, folder, layout))
            done[backend, layout] = folder
        return done[backend, layout]

    return folder_of


@pytest.fixture(scope="module")
def measured(home: Path) -> Any:
    """(backend, layout) → what ``tests.current.measure`` found there, of all weights or of adapters on them, or of
    random weights of another architecture."""
    done: dict[tuple[str, str, str | None, str | None, str | None], dict[str, Any]] = {}

    def found_by(
        backend: str, layout: str, adapters: str | None = None, architecture: str | None = None, more: str | None = None
    ) -> dict[str, Any]:
        key = backend, layout, adapters, architecture, more
        if key not in done:
            out = home / f"measured_{'_'.join(map(str, key))}.pt"
            start: Path | str = home / "defender" / "weights"
            if architecture is not None:
                # What is drawn for a gated layer at TP=2 is arranged in another order: begin with what PP=2 left.
                start = "null" if layout == "pp2" else home / f"measured_megatron_pp2_None_{architecture}_None.weights"
                assert layout == "pp2" or found_by("megatron", "pp2", None, architecture)
            words = [
                str(out), f"backend={backend}", f"sandbox.folder={home / 'sandbox'}", *SMALL, *LAYOUTS[layout],
                *(f"actors.{role}.restore_from_path={start}" for role in ("attacker", "defender")),
                *([] if architecture is None else ARCHITECTURES[architecture]), *([] if more is None else [more]),
                *([] if adapters is None else [*LORA, f"model.peft.restore_from_path={home / adapters / 'weights'}"]),
            ]  # fmt: skip
            lanes.run_ranks(backend, "tests.current.measure", words, 1 if layout == "tp1" else 2)
            done[key] = torch.load(out)
        return done[key]

    return found_by


@pytest.fixture(scope="module", params=BACKENDS)
def adapters(home: Path, request: pytest.FixtureRequest) -> str:
    """The run that made adapters of the defender, by either lane at TP2."""
    name = f"adapters_{request.param}"
    lanes.run(
        request.param, "sft", "-cn", "sft_sandbox_defender", f"backend={request.param}", *SMALL, *LAYOUTS["tp2"], *LORA,
        f"sandbox.folder={home / 'sandbox'}", f"exp_manager.explicit_log_dir={home / name}", "sft.max_steps=5",
        "sft.batch_size=64", f"actors.defender.restore_from_path={home / 'defender' / 'weights'}",
    )  # fmt: skip
    return name


def figures(folder: Path) -> dict[int, dict[str, float]]:
    return {record.step: _figures(record) for record in read_records(folder / "metrics.jsonl")}


def _figures(record: StepRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if not name.startswith(WHAT_SPEED_IS)}


def largest_difference(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> float:
    assert one.keys() == other.keys()
    assert all(one[step].keys() == other[step].keys() for step in one)
    return max(abs(value - other[step][name]) for step in one for name, value in one[step].items())


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row])


# --- the environment


def test_the_package_works_in_an_environment_without_nemo() -> None:
    program = (
        "import importlib.util as u, nemo_magic; from importlib.metadata import version; "
        "print([n for n in ('nemo', 'nemo_aligner', 'lightning', 'pytorch_lightning', 'apex') if u.find_spec(n)], "
        "version('megatron-core'))"
    )
    done = subprocess.run(
        [lanes.python_of("megatron"), "-c", program], capture_output=True, text=True, env=lanes.environment()
    )
    assert done.stdout == "[] 0.16.1\n", done.stderr
    said = lanes.run("megatron", "train", "-cn", "magic_sandbox", "backend=megatron", "--dry-run")
    assert "backend: megatron\n" in said


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_whose_packages_are_elsewhere_is_refused_by_name(home: Path, tmp_path: Path, backend: str) -> None:
    words = game(home, backend, tmp_path / "run", "tp1")
    said = lanes.run(OTHER[backend], *words, status=2)
    assert f"backend={backend} needs megatron-core 0.{10 if backend == 'nemo_aligner' else 16}" in said
    assert f"or take backend={OTHER[backend]}" in said


def test_a_plan_is_refused_where_its_megatron_is_not() -> None:
    said = lanes.run("megatron", "plan", "-cn", "magic_8b", status=2)
    assert "a plan asks the backend's Megatron-core for the shapes: backend=nemo_aligner" in said


# --- the same numbers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_equal_in_both_lanes_before_and_after_learning(measured: Any, layout: str) -> None:
    one, other = (measured(backend, layout) for backend in BACKENDS)
    for key in ("before", "after", "reference"):
        assert (flat(one[key]) - flat(other[key])).abs().max() < 1e-5
    assert (flat(one["before"]) - flat(one["after"])).abs().max() > 1e-3
    assert one["reference"] == one["before"]
    for (mine, norm), (theirs, other_norm) in zip(one["updates"], other["updates"], strict=True):
        assert norm == pytest.approx(other_norm, rel=1e-5)
        assert mine == {name: pytest.approx(pair, rel=1e-5) for name, pair in theirs.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_new_lane_gives_the_same_numbers_at_every_layout(measured: Any, layout: str) -> None:
    alone, here = measured("megatron", "tp1"), measured("megatron", layout)
    for key in ("before", "after", "reference"):
        assert (flat(alone[key]) - flat(here[key])).abs().max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_seeds_sample_the_same_tokens(measured: Any, layout: str) -> None:
    one, other = (measured(backend, layout)["completions"] for backend in BACKENDS)
    assert [ids for ids, _ in one] == [ids for ids, _ in other]
    assert (flat([p for _, p in one]) - flat([p for _, p in other])).abs().max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_that_is_too_long_is_not_used(measured: Any, layout: str) -> None:
    made, norm, skipped = measured("megatron", layout)["skipped"]
    assert (made, skipped) == (False, 1)
    assert math.isfinite(norm)


@pytest.mark.parametrize("architecture", [None, "qwen3"])
def test_sequences_split_over_tensor_parallel_ranks_change_nothing(measured: Any, architecture: str | None) -> None:
    whole = measured("megatron", "tp2", architecture=architecture)
    split = measured("megatron", "tp2", architecture=architecture, more=SPLIT)
    for key in ("before", "after", "reference"):
        assert (flat(whole[key]) - flat(split[key])).abs().max() < 2e-6
    for one, other in zip(whole["gradients"], split["gradients"], strict=True):
        assert (one - other).abs().max() < 2e-6
    assert max(gradient.abs().max() for gradient in whole["gradients"]) > 1e-3
    # Decoding has whole ones: a new token cannot be split.
    assert [ids for ids, _ in whole["completions"]] == [ids for ids, _ in split["completions"]]


@pytest.mark.parametrize("layout", ["pp2", "tp2"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_architectures_begin_and_learn_alike(measured: Any, architecture: str, layout: str) -> None:
    one, other = (measured(backend, layout, architecture=architecture) for backend in BACKENDS)
    for key in ("before", "after", "reference"):
        assert (flat(one[key]) - flat(other[key])).abs().max() < 1e-5
    assert [ids for ids, _ in one["completions"]] == [ids for ids, _ in other["completions"]]


@pytest.mark.parametrize("layout", ["tp1", "tp2"])
def test_adapters_of_either_lane_are_adapters_of_both(measured: Any, adapters: str, layout: str) -> None:
    one, other = (measured(backend, layout, adapters) for backend in BACKENDS)
    for key in ("before", "after", "reference"):
        assert (flat(one[key]) - flat(other[key])).abs().max() < 1e-5
    without = measured("megatron", "tp1")["before"]
    assert (flat(one["before"]) - flat(without)).abs().max() > 1e-3
    assert (flat(one["before"]) - flat(one["after"])).abs().max() > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_steps_of_the_game_have_the_same_figures_in_both_lanes(played: Any, layout: str) -> None:
    one, other = (figures(played(backend, layout)) for backend in BACKENDS)
    assert max(one) == STEPS
    assert any(values.get("train_optim/grad_norm") for values in one.values())
    assert largest_difference(one, other) < 1e-4


def test_learning_rates_are_nemos() -> None:
    done = subprocess.run(
        [lanes.python_of("nemo_aligner"), "-m", "tests.current.rates"],
        capture_output=True, text=True, env=lanes.environment(), cwd=lanes.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rates in json.loads(done.stdout.splitlines()[-1]):
        for theirs, ours in rates:
            assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-18)


# --- the same files


def tensors_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name → size, of what a distributed checkpoint holds."""
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(getattr(entry, "size", ())) for name, entry in entries.items()}


def test_checkpoints_of_both_lanes_hold_the_same_names_and_sizes(played: Any) -> None:
    one, other = (
        tensors_of(played(backend, "tp2") / FOLDER / f"step_{STEPS:06d}" / "policies") for backend in BACKENDS
    )
    assert one == other
    assert "attacker.optimizer.state.exp_avg.model.embedding.word_embeddings.weight" in one


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("begun", "ended"), [("tp1", "tp1"), ("tp2", "pp2")])
def test_a_run_begun_in_one_lane_goes_on_in_the_other(
    home: Path, played: Any, backend: str, begun: str, ended: str
) -> None:
    folder = home / f"moved_from_{backend}_{begun}_to_{ended}"
    shutil.copytree(played(OTHER[backend], begun), folder)
    shutil.rmtree(folder / FOLDER / f"step_{STEPS:06d}")
    lanes.run(backend, *game(home, backend, folder, ended))
    assert largest_difference(figures(folder), figures(played(backend, begun))) < 1e-4


@pytest.mark.parametrize("layout", ["tp2"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(home: Path, played: Any, layout: str) -> None:
    unbroken, folder = played("megatron", layout), home / f"killed_{layout}"
    words, log = game(home, "megatron", folder, layout), home / f"killed_{layout}.log"
    running = lanes.start("megatron", words, log)
    while not (folder / FOLDER / "step_000005" / "COMMITTED").is_file():
        assert running.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    lanes.run("megatron", *words)
    assert figures(folder) == figures(unbroken)
    one, other = (
        torch.load(run / FOLDER / f"step_{STEPS:06d}" / "rng" / "rank_00000.pt") for run in (folder, unbroken)
    )
    assert torch.equal(one["torch"], other["torch"])


def test_a_distributed_optimizer_learns_the_same_and_is_saved_for_any_layout(home: Path) -> None:
    two, sharded = ["trainer.devices=2"], ["model.optim.name=mcore_distributed_optim"]
    for name, words in (("whole", two), ("sharded", [*two, *sharded])):
        lanes.run("megatron", *game(home, "megatron", home / name, "tp1"), *words, "game.max_steps=6")
    unbroken, whole = (figures(home / name) for name in ("sharded", "whole"))
    assert largest_difference(unbroken, whole) < 1e-4
    # The first checkpoint is of roles that have not learned yet, the second of both.
    for step, words in ((0, []), (5, []), (5, ["model.tensor_model_parallel_size=2"])):
        resumed = home / f"sharded_{step}_{len(words)}"
        shutil.copytree(home / "sharded", resumed)
        for path in (resumed / FOLDER).glob("step_*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        lanes.run("megatron", *game(home, "megatron", resumed, "tp1"), *two, *sharded, "game.max_steps=6", *words)
        found = figures(resumed)
        if words:  # what an update is made of is another share of the rollout there
            played = {name for name in unbroken[6] if name.startswith("train_rollouts/")}
            assert {name: found[6][name] for name in played} == pytest.approx(
                {name: unbroken[6][name] for name in played}
            )
            assert len(played) > 5
        else:
            assert found == unbroken


# --- what measures and serves


def test_an_evaluation_says_the_same_in_both_lanes_and_cross_play_and_the_server_run_in_the_new_one(
    home: Path, played: Any, tmp_path: Path
) -> None:
    sandbox = [f"sandbox.folder={home / 'sandbox'}", *SMALL, *LAYOUTS["tp1"]]
    weights = [f"actors.{role}.restore_from_path={home / role / 'weights'}" for role in ("attacker", "defender")]
    files = []
    for backend in BACKENDS:
        folder = tmp_path / backend
        lanes.run(
            backend, "evaluate", "-cn", "eval_sandbox", f"backend={backend}", *sandbox, *weights,
            f"exp_manager.explicit_log_dir={folder}", "eval.tasks.test.limit=8", "eval.tasks.validation.limit=4",
        )  # fmt: skip
        files.append({path.name: path.read_text() for path in (folder / "transcripts").iterdir()})
    assert files[0] == files[1]
    assert len(files[0]) == 2

    run = tmp_path / "run"
    shutil.copytree(played("megatron", "tp1"), run)
    lanes.run("megatron", "cross-play", str(run), "game.crossplay.num_seeds=2")
    assert list((run / "cross-play").iterdir())

    words = ["serve", "-cn", "magic_sandbox", "backend=megatron", *sandbox, *weights, "serve.port=0"]
    log = tmp_path / "serve.log"
    serving = lanes.start("megatron", words, log)
    while not (ready := re.search(r"on (http://\S+/v1), ready", log.read_text())):
        assert serving.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    question = {"model": "defender", "messages": [{"role": "user", "content": "ka"}], "temperature": 0}
    answer = httpx.post(f"{ready[1]}/chat/completions", json=question, timeout=60, trust_env=False)
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(timeout=60) == 0
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0
