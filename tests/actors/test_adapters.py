"""Two roles are adapters on one base: equal at every parallel layout, apart from each other, and mended where NeMo is
wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig
from tests import zygote

pytestmark = pytest.mark.process

# name: (ranks, TP, PP)
WORLDS = {"tp1": (1, 1, 1), "tp2": (2, 2, 1), "pp2": (2, 1, 2), "dp2": (2, 1, 1), "tp2pp2": (4, 2, 2)}
OTHERS = [name for name in WORLDS if name != "tp1"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """The folder, and per world what every rank measured."""
    folder = tmp_path_factory.mktemp("adapters")
    prepare(SandboxConfig(folder=str(folder / "sandbox"), attack_rows=10, defender_rows=10))
    found = {}
    for name, (ranks, tp, pp) in WORLDS.items():
        world = Path(__file__).with_name("adapters_world.py")
        run = zygote.run(zygote.script(world, str(folder), name, str(tp), str(pp), ranks=ranks), timeout=900)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        found[name] = json.loads((folder / f"{name}.json").read_text())
    return folder, found


def _difference(a: list[list[float]], b: list[list[float]]) -> float:
    assert [len(row) for row in a] == [len(row) for row in b]
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def _gradients(folder: Path, name: str) -> dict[str, torch.Tensor]:
    target = folder / f"gradients-{name}.pt"
    dcp_to_torch_save(folder / "gradients" / name, target)
    state = torch.load(target, weights_only=False)
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("name", OTHERS)
def test_adapters_load_at_every_layout_and_give_the_same_log_probabilities(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        for key in ("logprobs", "untrained", "reference", "reference_of_new"):
            assert _difference(rank[key], found["tp1"][0][key]) <= 2e-6, key


@pytest.mark.parametrize("name", OTHERS)
def test_every_gradient_of_an_adapter_is_equal_at_every_layout(worlds: Any, name: str) -> None:
    folder, _ = worlds
    one, other = _gradients(folder, "tp1"), _gradients(folder, name)
    assert set(one) == set(other)
    assert len(one) == 8  # A and B of four linear layers, each of all layers
    assert all(float(gradient.abs().max()) > 1e-4 for gradient in one.values())
    for key, gradient in one.items():
        assert float((gradient - other[key]).abs().max()) <= 2e-6, key


@pytest.mark.parametrize("name", WORLDS)
def test_decoding_with_adapters_gives_the_log_probabilities_of_the_training_forward(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["ids"] == found["tp1"][0]["ids"]
        assert rank["decoding"] <= 1e-5


def test_nemos_attention_with_adapters_leaves_out_the_norms_on_which_cached_rotary_hangs(worlds: Any) -> None:
    _, found = worlds
    assert found["tp1"][0]["decoding unmended"] > 0.1


@pytest.mark.parametrize("name", WORLDS)
def test_two_roles_stand_on_one_base_in_memory(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["shared"]
        assert rank["trainable"] < rank["all"] / 4


@pytest.mark.parametrize("name", WORLDS)
def test_what_one_role_learns_changes_neither_the_other_nor_the_base(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        learned = rank["learned"]
        assert all(norm > 0 for norm in learned.pop("norms"))
        assert all(learned.values()), learned


def test_the_reference_policy_is_the_base_or_the_adapters_that_the_role_began_with(worlds: Any) -> None:
    rank = worlds[1]["tp1"][0]
    assert rank["reference"] == rank["logprobs"]
    assert rank["reference_of_new"] == rank["untrained"]
    assert _difference(rank["reference"], rank["reference_of_new"]) > 0.01


def test_recompute_trains_every_layer_and_without_its_mend_it_does_not(worlds: Any) -> None:
    recompute = worlds[1]["tp1"][0]["recompute"]
    for method in ("uniform", "block"):
        assert recompute[method] == [True, 0.0]
    trained, there = recompute["block unmended"]
    assert trained == there / 2  # two of four layers are recomputed, and those say nothing
    assert "does not require grad" in recompute["uniform unmended"]


@pytest.mark.parametrize("name", WORLDS)
def test_a_snapshot_holds_adapters_only_and_names_its_base(worlds: Any, name: str) -> None:
    folder, found = worlds
    snapshot = folder / "snapshots" / name
    names = FileSystemReader(snapshot).read_metadata().state_dict_metadata
    assert names
    assert all(".adapter_layer." in key for key in names)
    written = sum(path.stat().st_size for path in snapshot.glob("*.distcp"))
    assert written < 3 * 4 * found["tp1"][0]["trainable"]
    card = json.loads((snapshot / "adapter.json").read_text())
    assert card["base"] == str(folder / "base")
    assert (card["adapter_dim"], card["alpha"]) == (8, 16.0)


@pytest.mark.parametrize("name", WORLDS)
def test_a_checkpoint_of_adapters_goes_on_at_every_layout(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["equal_ranks"]
        assert _difference(rank["restored"], found["tp1"][0]["restored"]) <= 5e-6
        assert _difference(rank["went_on"], found["tp1"][0]["went_on"]) <= 1e-5


def test_nemo_saves_no_adapters_of_mlps_and_takes_those_of_attention_for_copies(worlds: Any) -> None:
    _, found = worlds
    assert "has no attribute 'sharded_state_dict'" in found["tp1"][0]["mlp unmended"]
    for name, (_, tp, _) in WORLDS.items():
        (rows, _), (local, _), _ = found[name][0]["attention unmended"]
        assert rows == local == 192 // tp  # of 192 rows, which no rank has at TP2


def test_unless_gate_and_up_are_kept_apart_adapters_are_mixed_up_at_another_tensor_parallel_size(worlds: Any) -> None:
    _, found = worlds
    assert _difference(found["dp2"][0]["mixed"], found["tp2"][0]["logprobs"]) > 0.01
