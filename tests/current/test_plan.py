"""``nemo-magic plan backend=megatron``: its shapes are Megatron-core 0.16's and those of a real rank, to the byte."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.planner.shapes import Part, Shapes
from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig
from tests.current import lanes
from tests.current.planned import PRESETS, shapes
from tests.planner.worlds import ROWS, TOKENS, WORLDS, planned_model
from tests.presets import model_preset

pytestmark = [pytest.mark.process, pytest.mark.current]

VOCABULARY = 45
FFN = planned_model("tp2").ffn_hidden_size
PLAN = ["plan", "-cn", "magic_8b", "backend=megatron", "generation.engine=native", "plan.search=false"]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Name → shapes, as Megatron-core 0.16 has them."""
    done = subprocess.run(
        [lanes.python_of("megatron"), "-m", "tests.current.planned", str(VOCABULARY)],
        capture_output=True, text=True, env=lanes.environment(), cwd=lanes.ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    prepare(SandboxConfig(folder=str(folder / "sandbox"), attack_rows=10, defender_rows=10))
    return folder


def test_both_megatrons_have_the_same_parameters_and_products_and_the_newer_keeps_more(
    measured: dict[str, Any],
) -> None:
    older = shapes(VOCABULARY)
    for name in (*PRESETS, "tp2"):
        theirs, ours = older[name], measured[name]
        for part in ("first", "last"):
            assert ours[part] == theirs[part]
        for figure in ("parameters", "trainable", "forward", "backward"):
            assert ours["layer"][figure] == theirs["layer"][figure]
        # A gated layer of 0.16 adds an offset of 0 to what is multiplied with the gate, and keeps the sum.
        is_preset = name in PRESETS
        tokens, bytes_each, tp = (512, 2, 4) if is_preset else (ROWS * TOKENS, 4, 2)
        ffn = model_preset(name)["ffn_hidden_size"] if is_preset else FFN
        kept = [found["layer"]["kept"] + found["layer"]["recomputed"] for found in (theirs, ours)]
        assert kept[1] - kept[0] == bytes_each * tokens * ffn // tp


@pytest.mark.parametrize("name", ["tp2", "lora_pp2"])
def test_a_real_ranks_parameters_gradients_and_activations_are_the_plans(
    folder: Path, measured: dict[str, Any], name: str
) -> None:
    tp, pp, _ = WORLDS[name]
    lanes.run_ranks("megatron", "tests.planner.real_world", [str(folder), name, "megatron"], tp * pp)
    ranks: list[dict[str, Any]] = json.loads((folder / f"megatron-{name}.json").read_text())
    assert ranks[0]["vocabulary"] == VOCABULARY
    found = measured[name]
    planned = Shapes(**found | {part: Part(**found[part]) for part in ("layer", "first", "last")})
    for rank in ranks:
        stage = rank["stage"]
        assert rank["parameters"] == planned.parameters(stage)
        assert rank["optimizer"] == planned.trainable(stage)
        assert rank["gradient_bytes"] == 4 * planned.trainable(stage)
        assert rank["kept"] == planned.kept(stage)
    assert ranks[-1]["output"] == [ROWS, TOKENS, planned.logits // (ROWS * TOKENS)]


def test_a_plan_of_either_backend_is_made_in_its_own_environment() -> None:
    plan = json.loads(lanes.run("megatron", *PLAN, "--json"))["plan"]
    assert plan["parameters"] == {"attacker": 8_030_261_248, "defender": 8_030_261_248}
    said = lanes.run("megatron", "plan", "-cn", "magic_8b", status=2)
    assert (
        "a plan asks the backend's Megatron-core for the shapes: backend=nemo_aligner needs megatron-core 0.10" in said
    )
    said = lanes.run("nemo_aligner", *PLAN, status=2)
    assert "backend=megatron needs megatron-core 0.16" in said
