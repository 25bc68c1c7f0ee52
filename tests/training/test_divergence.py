"""A model that computes nothing finite ends its run with what is wrong, wherever that is first seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_magic.report.records import read_records
from tests.training.program import Game, run

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("lr", "overrides", "seen"),
    [
        # The weights are finite still, and what they compute is not: seen by the next that samples.
        ("1e30", [], "not finite in"),
        ("1e30", ["grpo.minibatches=2", "model.tensor_model_parallel_size=2"], "not finite"),
        # 0 / 0 where a gradient is 0: an update that leaves no numbers.
        ("1e-4", ["actors.defender.model.optim.eps=0"], "weights after a step are not finite"),
    ],
    ids=["logits", "log-probabilities", "weights"],
)
def test_a_game_that_diverged_ends_aloud_and_never_as_a_success(
    game: Game, lr: str, overrides: list[str], seen: str
) -> None:
    name = f"diverged_{lr}_{len(overrides)}"
    done = run(*game.quick(name, f"actors.defender.model.optim.lr={lr}", *overrides), status=1)
    assert seen in done.stderr
    assert "nemo-magic train: step " in done.stderr
    assert "Traceback" not in done.stderr
    assert read_records(game.folder(name) / "metrics.jsonl")[-1].step < 6


def test_a_warm_up_that_diverged_saves_no_weights(game: Game, tmp_path: Path) -> None:
    done = run(
        "sft", "-cn", "sft_sandbox_defender", f"sandbox.folder={game.home / 'sandbox'}", "model.num_layers=4",
        "sandbox.attack_rows=400", "sandbox.defender_rows=400", f"exp_manager.explicit_log_dir={tmp_path / 'sft'}",
        "sft.max_steps=1", "sft.batch_size=16", "trainer.devices=1",
        "actors.defender.model.optim.lr=1e30", "actors.defender.model.optim.sched.warmup_steps=0",
        status=1,
    )  # fmt: skip
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sft" / "weights").exists()
