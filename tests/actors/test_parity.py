"""The same weights and rollouts give the same numbers at every parallel layout, and decoding agrees with training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

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
    folder = tmp_path_factory.mktemp("parity")
    prepare(SandboxConfig(folder=str(folder / "sandbox"), attack_rows=10, defender_rows=10))
    found = {}
    for name, (ranks, tp, pp) in WORLDS.items():
        measure = Path(__file__).with_name("measure.py")
        run = zygote.run(zygote.script(measure, str(folder), name, str(tp), str(pp), ranks=ranks), timeout=300)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        found[name] = json.loads((folder / f"{name}.json").read_text())
    return folder, found


def _gradients(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Whole tensors, put together from the shards of a distributed checkpoint."""
    target = folder / f"gradients-{name}.pt"
    dcp_to_torch_save(folder / "gradients" / name, target)
    state = torch.load(target, weights_only=False)
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    assert [len(row) for row in a] == [len(row) for row in b]
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize("name", OTHERS)
def test_the_loss_is_equal_at_every_layout(worlds: Any, name: str) -> None:
    _, found = worlds
    assert found["tp1"][0]["loss"] != 0
    for rank in found[name]:
        assert rank["loss"] == pytest.approx(found["tp1"][0]["loss"], abs=1e-6)
        assert rank["counts"] == found["tp1"][0]["counts"]


@pytest.mark.parametrize("name", OTHERS)
def test_every_gradient_is_equal_at_every_layout(worlds: Any, name: str) -> None:
    folder, _ = worlds
    one, other = _gradients(folder, "tp1"), _gradients(folder, name)
    assert set(one) == set(other)
    assert len(one) >= 8
    assert max(float(g.abs().max()) for g in one.values()) > 1e-2
    for key, gradient in one.items():
        assert float((gradient - other[key]).abs().max()) <= 1e-6, key


@pytest.mark.parametrize("name", OTHERS)
def test_log_probabilities_are_equal_at_every_layout_and_on_every_stage(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        for key in ("logprobs", "reference_logprobs"):
            assert _largest_difference(rank[key], found["tp1"][0][key]) <= 5e-6


@pytest.mark.parametrize("name", WORLDS)
def test_the_likeliest_tokens_have_the_log_probabilities_of_the_training_pass(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        ranked = rank["ranked"]
        assert ranked["among"] > 5
        assert ranked["differing"] == 0
        assert ranked["falling"]
        assert ranked["known"]
        assert ranked["ids"] == found["tp1"][0]["ranked"]["ids"]


def test_the_reference_policy_is_where_the_actor_started(worlds: Any) -> None:
    _, found = worlds
    assert found["tp1"][0]["logprobs"] == found["tp1"][0]["reference_logprobs"]


@pytest.mark.parametrize("name", OTHERS)
def test_generation_gives_the_same_tokens_at_every_layout_and_on_every_rank(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["ids"] == found["tp1"][0]["ids"]
        assert rank["greedy"] == found["tp1"][0]["greedy"]


@pytest.mark.parametrize("name", WORLDS)
def test_cached_decoding_gives_the_log_probabilities_of_a_full_forward(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert _largest_difference(rank["generated_logprobs"], rank["forward_logprobs"]) <= 1e-5


@pytest.mark.parametrize("name", WORLDS)
def test_a_rows_sample_does_not_depend_on_its_neighbours(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["alone"] == rank["ids"][5]


@pytest.mark.parametrize("name", WORLDS)
def test_stop_strings_end_a_response_and_are_not_part_of_its_text(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        words = rank["words"]
        text, finished, length = rank["stopped"]
        assert (text, finished) == (words[0], True)
        assert 3 <= length < len(rank["ids"][0])
        ends = set(words[1:5])
        assert any(finished for _, finished in rank["worded"])
        assert not any(ends & set(text) for text, _ in rank["worded"])


@pytest.mark.parametrize("name", WORLDS)
def test_a_generator_refuses_weights_that_are_not_the_actors(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        stale, unloaded = rank["stale_refused"]
        assert "defender is at weights version" in stale
        assert "before load" in unloaded


@pytest.mark.parametrize("name", WORLDS)
def test_a_rank_with_nothing_to_learn_from_still_measures_what_the_others_do(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        counts = rank["one_rank_learns"]["counts"]
        assert {"kl", "mismatch", "mismatch_max", "tis_clipped_share"} <= set(counts)
        assert counts["mismatch"] == counts["kl"] == rank["one_rank_learns"]["tokens"] > 0


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_masked_or_has_no_advantage_moves_nothing(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["dummy_gradient"] == 0.0
        assert rank["zero_advantage_gradient"] == 0.0
        assert rank["moved"]
        assert rank["version_step"] == 1
        assert rank["grad_norm"] > 0


@pytest.mark.parametrize("name", WORLDS)
def test_an_update_that_is_not_finite_or_too_large_is_skipped_by_every_rank(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        skipped = rank["skipped"]
        assert skipped["made"] == [False, False]
        assert skipped["finite"] == [False, True]
        assert (skipped["in_a_row"], skipped["in_a_row_after"]) == (2, 0)
        assert (skipped["moved"], skipped["version_step"]) == (False, 0)


@pytest.mark.parametrize("name", WORLDS)
def test_a_past_self_is_worn_and_given_back(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert rank["past"] == {"worn": True, "own": True, "noticed": True}


@pytest.mark.parametrize("name", WORLDS)
def test_a_snapshot_of_gated_mlps_is_no_larger_than_its_weights(worlds: Any, name: str) -> None:
    snapshot = worlds[0] / "snapshots" / name
    tensors = FileSystemReader(snapshot).read_metadata().state_dict_metadata.values()
    weights = sum(t.size.numel() * t.properties.dtype.itemsize for t in tensors if isinstance(t, TensorStorageMetadata))
    written = sum(path.stat().st_size for path in snapshot.glob("*.distcp"))
    assert weights < written <= 1.1 * weights


@pytest.mark.parametrize("name", WORLDS)
def test_a_checkpoint_that_would_not_fit_is_refused_before_it_is_begun(worlds: Any, name: str) -> None:
    _, found = worlds
    for rank in found[name]:
        assert "no room for a checkpoint: about " in rank["no_room"]["said"]
        assert "3.0 MB free" in rank["no_room"]["said"]
        assert rank["no_room"]["left"] == []


def test_the_two_roles_are_two_models(worlds: Any) -> None:
    _, found = worlds
    assert all(rank["roles_differ"] for ranks in found.values() for rank in ranks)
