"""benchmarks/gpu_megatron.py, which is for a GPU, runs from its beginning to its end on CPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.current import lanes

pytestmark = [pytest.mark.process, pytest.mark.current]

GAME = [
    "sft.max_steps=2", "sft.batch_size=16", "game.max_steps=2", "game.schedule.freq=1", "game.batch_size=4",
    "game.num_val_samples=4", "game.val_check_interval=2", "game.crossplay.enabled=false", "model.num_layers=2",
    "sandbox.attack_rows=50", "sandbox.defender_rows=50",
]  # fmt: skip
MODEL = [
    "model.num_layers=2", "model.hidden_size=96", "model.ffn_hidden_size=256", "model.micro_batch_size=4",
    "model.make_vocab_size_divisible_by=64",
]  # fmt: skip


def test_the_script_for_a_gpu_plays_measures_and_sets_the_plan_beside_it(tmp_path: Path) -> None:
    script, out = lanes.ROOT / "benchmarks" / "gpu_megatron.py", tmp_path / "gpu.json"
    sizes = ["--steps", "1", "--rows", "8", "--prompt", "32", "--response", "16"]
    done = subprocess.run(
        [lanes.python_of("megatron"), str(script), "--cpu", "--folder", str(tmp_path / "run"), *sizes,
         "--out", str(out), "--game", *GAME, "--model", *MODEL],
        capture_output=True, text=True, env=lanes.environment(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert found["game"]["train_optim/mismatch"] == pytest.approx(1, abs=1e-4)
    assert found["game"]["timers/update"] > 0
    assert set(found["measured"]) >= {"update", "logprobs", "decode", "learning_bytes"} <= set(found["planned"])
    # Bytes are counted, not timed: they do not depend on what else this machine does.
    assert found["planned"]["learning_bytes"] == pytest.approx(found["measured"]["learning_bytes"], rel=0.25)
    assert found["reached"]["MFU of an update"] > 0
    for text in ("MFU of an update", "tokens a second, decoding", "memory while learning, GiB"):
        assert text in done.stdout
